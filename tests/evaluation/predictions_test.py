"""Answers on disk: what a kill leaves behind, what is refused, and a killed evaluation resumed."""

import concurrent.futures
import dataclasses
import json

import numpy as np
import pytest

from speciarl_jax.evaluation import predictions, provenance
from speciarl_jax.evaluation.evaluator import Evaluator, answer_part
from speciarl_jax.evaluation.predictions import Part, Predictions
from speciarl_jax.experiment import host_verification
from speciarl_jax.verifiers.base import HostVerifier, Verdicts
from speciarl_jax.verifiers.category import Category

pytestmark = pytest.mark.usefixtures("shared_programs")
PART = Part("base", "emoji", "base", "greedy")


def line(index, category="specific"):
    row = {"image_id": 7 * index, "label": "mug", "index": index}
    return {**row, "responses": [f"answer {index}"], "categories": [category]}


def filled(folder, count=3):
    store = Predictions(folder)
    assert store.begin(PART, {"a": 1}) == 0
    store.append(PART, [line(i) for i in range(count)])
    return store


@pytest.mark.parametrize("cut", [1, 10, 60])
def test_a_line_that_is_not_whole_is_dropped_and_the_part_goes_on_after_the_last(tmp_path, cut):
    filled(tmp_path)
    path = tmp_path / predictions.LINES
    whole = path.read_bytes()
    path.write_bytes(whole[:-cut])
    assert len(predictions.read(tmp_path)[PART]) == 2 and path.read_bytes() == whole[:-cut]
    store = Predictions(tmp_path)
    assert store.begin(PART, {"a": 1}) == 2
    store.append(PART, [line(2)])
    assert path.read_bytes() == whole


def test_another_configuration_is_refused_and_shows_the_difference_or_replaces(tmp_path):
    store = filled(tmp_path)
    other = PART._replace(policy="trained")
    store.begin(other, {"b": 1})
    store.append(other, [line(0)])
    again = Predictions(tmp_path)
    with pytest.raises(ValueError) as error:
        again.begin(PART, {"a": 2, "c": [1]})
    said = str(error.value)
    assert "base/emoji/base/greedy" in said and "a: 1 -> 2" in said and "c: None -> [1]" in said
    assert "--overwrite" in said and len(Predictions(tmp_path).lines(PART)) == 3
    assert again.begin(PART, {"a": 2}, overwrite=True) == 0
    kept = Predictions(tmp_path)
    assert kept.lines(PART) == [] and len(kept.lines(other)) == 1
    assert predictions.read_provenance(tmp_path)[str(PART)] == {"a": 2}
    # What another part was made with does not matter.
    assert kept.begin(other, {"b": 1}) == 1


def test_another_policy_under_the_same_name_is_refused_or_replaces_all_of_its_parts(tmp_path):
    store, samples = Predictions(tmp_path), PART._replace(decoding="samples")
    for part in (PART, samples, PART._replace(policy="other")):
        store.begin(part, {"policy": 1})
        store.append(part, [line(0)])
    with pytest.raises(ValueError, match="policy: 1 -> 2"):
        store.begin(PART._replace(prompt="specific"), {"policy": 2})
    assert store.begin(PART, {"policy": 2}, overwrite=True) == 0
    kept = Predictions(tmp_path)
    assert [part.policy for part in kept.parts()] == ["other"]


def test_samples_of_another_verifier_do_not_share_a_row_with_greedy_answers(tmp_path):
    store, samples = Predictions(tmp_path), PART._replace(decoding="samples")

    def made(verifier, **sampling):
        return {"policy": 1, "verifier": {"name": verifier, "words": 8}, "sampling": sampling}

    other = PART._replace(prompt="specific")
    for part, provenance_ in (
        (PART, made("a")),
        (samples, made("a", answers=64)),
        (other, made("a")),
    ):
        store.begin(part, provenance_)
        store.append(part, [line(0)])
    # Greedy answers alone are asked for again, with another verifier.
    for part in (PART, samples):
        with pytest.raises(ValueError, match="verifier.name: 'a' -> 'b'") as error:
            store.begin(part, made("b"))
        assert "words" not in str(error.value)
    assert store.begin(PART, made("b"), overwrite=True) == 0
    store.append(PART, [line(0)])
    assert list(Predictions(tmp_path).parts()) == [other, PART]
    # Samples are begun anew with what the greedy answers have, and N may change.
    store.begin(samples, made("b", answers=8))
    store.append(samples, [line(0)])
    assert store.begin(PART, made("b")) == 1
    with pytest.raises(ValueError, match="sampling.answers: 8 -> 9"):
        store.begin(samples, made("b", answers=9))


def test_lines_without_a_word_on_their_origin_are_not_gone_on_with(tmp_path):
    filled(tmp_path)
    path = tmp_path / predictions.PROVENANCE
    # The name of the file in earlier versions.
    path.rename(tmp_path / "predictions_facts.json")
    assert Predictions(tmp_path).begin(PART, {"a": 1}) == 3 and not path.exists()
    (tmp_path / "predictions_facts.json").unlink()
    with pytest.raises(ValueError, match="a: None -> 1"):
        Predictions(tmp_path).begin(PART, {"a": 1})


@pytest.mark.parametrize("damage", ["not json", '{"policy": "base"}', "[1, 2]"])
def test_a_damaged_line_is_named(tmp_path, damage):
    filled(tmp_path)
    path = tmp_path / predictions.LINES
    rows = path.read_text().splitlines()
    path.write_text("\n".join([rows[0], damage, *rows[2:]]) + "\n")
    for reader in (Predictions, predictions.read):
        with pytest.raises(ValueError, match="predictions.jsonl, line 2 is damaged"):
            reader(tmp_path)


def test_two_lines_for_one_image_of_a_part_are_refused_and_named(tmp_path):
    store = filled(tmp_path)
    other = PART._replace(policy="trained")
    store.append(other, [line(i) for i in range(3)])
    path = tmp_path / predictions.LINES
    whole = path.read_text()
    path.write_text(whole + whole.splitlines()[1] + "\n")
    for reader in (Predictions, predictions.read):
        with pytest.raises(ValueError, match="delete all lines of that part") as refused:
            reader(tmp_path)
        assert f"{path}, lines 2 and 7 are both about image 1 of {PART};" in str(refused.value)
    path.write_text("".join(x for x in whole.splitlines(True) if "trained" in x))
    mended = Predictions(tmp_path)
    assert mended.begin(PART, {"a": 1}) == 0 and len(mended.lines(other)) == 3


def test_the_configuration_of_each_data_set_is_kept_the_latest_last(tmp_path):
    store = Predictions(tmp_path)
    for data, config in (("a", {"x": 1}), ("b", {"x": 2}), ("a", {"x": 3})):
        store.keep_config(data, config)
    Predictions(tmp_path).keep_config("b", {"x": 2})
    assert list(predictions.read_configs(tmp_path).items()) == [("b", {"x": 2}), ("a", {"x": 3})]
    (tmp_path / predictions.CONFIGS).write_text("{")
    with pytest.raises(ValueError, match="predictions_configs.json is no JSON .* delete it, and"):
        Predictions(tmp_path)


class Killed(Exception):
    """Stands for the end of the process between two lines."""


@pytest.fixture(scope="module")
def evaluator(run):
    return Evaluator(run, num_rollouts=2)


def answered(evaluator, folder, kill_after=None, monkeypatch=None):
    """The bytes of the lines, and the numbers of the images that were sampled."""
    store, sampled = Predictions(folder), []
    append, build = store.append, evaluator._build

    def dying(part, lines):
        append(part, lines)
        if kill_after is not None and len(store.lines(part)) >= kill_after:
            raise Killed

    def noted(local, count, start):
        batch = build(local, count, start)
        weight = np.asarray(batch.weight_B)[: len(count)]
        sampled.extend(i for i, w in zip(count, weight, strict=True) if w)
        return batch

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(store, "append", dying)
        patch.setattr(evaluator, "_build", noted)
        known = provenance.of_part(evaluator.run, evaluator.source, {"adapters": "none"})
        try:
            answer_part(evaluator, evaluator.run.lora, store, PART, known, temperature=1.0)
        except Killed:
            pass
    # What was asked is known before all answers are there.
    kept = predictions.read_configs(folder)[PART.data]
    assert kept == json.loads(evaluator.run.config.to_json())
    return (folder / predictions.LINES).read_bytes(), sampled


def test_a_killed_evaluation_goes_on_to_the_same_bytes_and_samples_nothing_twice(
    evaluator, tmp_path
):
    (tmp_path / "whole").mkdir(), (tmp_path / "killed").mkdir()
    whole, sampled = answered(evaluator, tmp_path / "whole")
    total = len(evaluator.source)
    assert sampled == list(range(total)) and whole.count(b"\n") == total > 33
    first, _ = answered(evaluator, tmp_path / "killed", kill_after=20)
    assert whole.startswith(first) and first.count(b"\n") == 32
    # The kill took part of a batch with it.
    path = tmp_path / "killed" / predictions.LINES
    path.write_bytes(first[: first[:-1].rfind(b"\n") - 5])
    second, sampled = answered(evaluator, tmp_path / "killed")
    assert second == whole and sampled == list(range(30, total))
    third, sampled = answered(evaluator, tmp_path / "killed")
    assert third == whole and sampled == []


class Ill(HostVerifier):
    """Judges by the text, but for what it is ill for; remembers what it was asked."""

    def __init__(self):
        self.ill, self.asked = lambda text: False, []

    def submit(self, responses, label_index):
        self.asked += [text for group in responses for text in group]
        shape = (len(responses), len(responses[0]) if responses else 2)
        category = [sum(map(ord, text)) % 7 - 1 for group in responses for text in group]
        valid = [not self.ill(text) for group in responses for text in group]
        future = concurrent.futures.Future()
        future.set_result(
            Verdicts(
                np.array(category, np.int32).reshape(shape),
                np.array(valid, bool).reshape(shape),
                np.zeros(shape, bool),
                np.zeros(shape, np.float32),
            )
        )
        return future

    def errors(self):
        return "it is ill"

    def close(self):
        pass


def test_failed_verdicts_are_asked_for_again_and_nothing_else(run, tmp_path):
    judge = Ill()
    evaluator = Evaluator(dataclasses.replace(run, verifier=judge), num_rollouts=2)
    (tmp_path / "well").mkdir(), (tmp_path / "ill").mkdir()
    want, _ = answered(evaluator, tmp_path / "well")
    assert judge.asked
    judge.asked, judge.ill = [], lambda text: len(text) % 3 == 0
    with pytest.raises(
        host_verification.JudgeUnavailable, match="base/emoji/base/greedy: .* it is ill"
    ):
        answered(evaluator, tmp_path / "ill")
    failed = sorted(filter(judge.ill, judge.asked))
    text = (tmp_path / "ill" / predictions.LINES).read_text()
    assert text.count(predictions.UNVERIFIED) == len(failed) > 10
    judge.asked, judge.ill = [], lambda text: False
    got, sampled = answered(evaluator, tmp_path / "ill")
    assert got == want and sampled == [] and sorted(judge.asked) == failed


def test_verdicts_come_back_from_their_names():
    lines = [line(0), line(1, "unparsed"), line(2, predictions.UNVERIFIED)]
    kept = predictions.verified(lines)
    np.testing.assert_array_equal(
        predictions.categories(kept), [[Category.SPECIFIC], [Category.UNPARSED]]
    )
    names = predictions.names_of(np.array([4, -1, 2]), np.array([True, True, False]))
    assert names == ["specific", "unparsed", predictions.UNVERIFIED]
