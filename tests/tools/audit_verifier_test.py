"""The audit: what it prints and writes, files of users, and what it refuses."""

import csv
import json

import judge_server
import numpy as np
import pytest
from PIL import Image

from configs import own_folder
from speciarl_jax.tools import audit_verifier
from speciarl_jax.verifiers.category import Category


@pytest.fixture
def config(small_config, tmp_path):
    prompt = tmp_path / "prompt.txt"
    prompt.write_text("Sort.\n{pair}\nReply.")
    return small_config(verifier__flax_judge__prompt=str(prompt))


def write_pairs(path, columns, rows):
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([columns, *rows])
    return str(path)


def test_two_verifiers_are_compared_with_the_pairs_and_with_each_other(config, tmp_path):
    rows = [
        ("wolf", "Timber wolf", "More specific", "a"),
        ("wolf", "canid", "less_specific", "b"),
        ("wolf", "a fox", "specific", "a person's mistake"),
        ("wolf", "wolf, fox", "wrong", "c"),
        ("fox", "none", "abstain", "d"),
    ]
    path = write_pairs(tmp_path / "p.csv", ["truth", "prediction", "category", "kind"], rows)
    names = ["taxonomy", "flax_judge"]
    figures, found, kept, lines = audit_verifier.audit(config, path, names)
    assert found["taxonomy"].category.tolist() == [5, 3, 0, 0, 1]
    result = figures["verifiers"]["taxonomy"]
    assert result["accuracy"] == 0.8 and result["disagreements"] == 1
    assert result["unverified"] == 0 and result["precision"]["wrong"] == 0.5
    assert np.sum(result["matrix"]) == 5
    text = "\n".join(lines)
    assert "'wolf' <- 'a fox': specific, verdict wrong [a person's mistake]" in text
    assert "== taxonomy and flax_judge ==" in text and "Cohen's kappa" in text
    # The list and the abstention are stated; random weights decide about the rest.
    judged = found["flax_judge"]
    assert judged.category[3:].tolist() == [0, 1] and judged.valid.all()
    np.testing.assert_allclose(judged.probability.sum(-1), 1, atol=1e-5)
    assert np.sum(figures["between"]["taxonomy, flax_judge"]["matrix"]) == 5
    audit_verifier.write(tmp_path / "out", figures, found, kept)
    assert json.loads((tmp_path / "out" / "audit.json").read_text()) == figures
    with (tmp_path / "out" / "verdicts.csv").open(newline="", encoding="utf-8") as file:
        written = list(csv.DictReader(file))
    assert [row["taxonomy: verdict"] for row in written][:2] == ["more_specific", "less_specific"]
    assert float(written[4]["flax_judge: abstain"]) == 1.0


def test_the_tree_of_any_data_set_judges_and_a_judge_needs_none(config, tmp_path):
    for number, name in enumerate(("bird/eagle", "bird/gull", "car/van")):
        folder = tmp_path / "images" / name
        folder.mkdir(parents=True)
        for i in range(4):
            Image.new("RGB", (9 + i, 9), (number, 0, 0)).save(folder / f"{i}.png")
    with config.unlocked():
        config.data = own_folder.get_config().data
        config.evaluation.options = own_folder.get_config().evaluation.options
    config.data.options.path = str(tmp_path / "images")
    config.data.options.held_out_share = 0.3
    config.train.batch_size = 2
    columns = ["truth", "prediction", "category"]
    rows = [("eagle", "bird", "generic"), ("gull", "eagle", "wrong"), ("van", "van", "specific")]
    path = write_pairs(tmp_path / "p.csv", columns, rows)
    figures, found, *_ = audit_verifier.audit(config, path, ["taxonomy"])
    assert found["taxonomy"].category.tolist() == [2, 0, 4]
    assert figures["verifiers"]["taxonomy"]["accuracy"] == 1
    # A judge takes the names of the pairs; the images need not be there.
    config.data.options.path = str(tmp_path / "gone")
    _, found, *_ = audit_verifier.audit(config, path, ["flax_judge"])
    assert found["flax_judge"].valid.all()
    with pytest.raises(ValueError, match="gone"):
        audit_verifier.audit(config, path, ["taxonomy"])


def test_a_judge_behind_http_is_audited_beside_the_tree(config, tmp_path):
    def script(body, number):
        pair = judge_server.pair_of(body)
        return judge_server.status(404) if pair["prediction"] == "beast" else None

    rows = [
        ("wolf", "timber wolf", "more_specific"),
        ("wolf", "canid", "less_specific"),
        ("wolf", "wolf or fox", "wrong"),
        ("fox", "beast", "generic"),
        ("fox", "none", "abstain"),
    ]
    path = write_pairs(tmp_path / "p.csv", ["truth", "prediction", "category"], rows)
    judge = config.verifier.http_judge
    judge.model, judge.cache = "judge", ""
    with judge_server.JudgeServer(script, opinion=lambda pair: "less specific") as server:
        judge.server.url = server.url
        names = ["taxonomy", "http_judge"]
        figures, found, kept, lines = audit_verifier.audit(config, path, names)
        asked = [judge_server.pair_of(body) for body in server.requests]
    assert sorted(pair["prediction"] for pair in asked) == ["beast", "canid", "timber wolf"]
    assert found["http_judge"].valid.tolist() == [True, True, True, False, True]
    assert found["http_judge"].category[[0, 1, 2, 4]].tolist() == [3, 3, 0, 1]
    result = figures["verifiers"]["http_judge"]
    assert result["unverified"] == 1 and result["accuracy"] == 0.75
    assert result["disagreements"] == 1 and np.sum(result["matrix"]) == 4
    text = "\n".join(lines)
    assert "== http_judge against the labels ==" in text and "1 pairs have no verdict" in text
    assert "== taxonomy and http_judge ==" in text and "HTTP 404" in text
    audit_verifier.write(tmp_path / "out", figures, found, kept)
    with (tmp_path / "out" / "verdicts.csv").open(newline="", encoding="utf-8") as file:
        written = list(csv.DictReader(file))
    said = [row["http_judge: verdict"] for row in written]
    assert said == ["less_specific", "less_specific", "wrong", "unverified", "abstain"]


def test_outcomes_of_its_own_and_pairs_left_to_the_judge(config, tmp_path):
    rows = [
        ("wolf", "<answer>wolf</answer><answer>fox</answer>", "unparsed", "unparsed"),
        ("wolf", "<answer>it is a wolf</answer>", "wrong", "ask"),
        ("wolf", "<answer>" + "wolf " * 200 + "</answer>", "wrong", "wrong"),
    ]
    path = write_pairs(tmp_path / "p.csv", ["truth", "response", "taxonomy", "judge"], rows)
    figures, found, _, lines = audit_verifier.audit(config, path, ["taxonomy", "flax_judge"])
    for name in ("taxonomy", "flax_judge"):
        assert figures["verifiers"][name]["accuracy"] == 1
    assert np.sum(figures["verifiers"]["flax_judge"]["matrix"]) == 2
    assert "1 pairs are for the judge to decide" in "\n".join(lines)
    assert found["flax_judge"].category[1] in set(Category)


def test_an_answer_without_a_verdict_is_counted_and_compared_with_nothing():
    rows = [{"truth": "wolf", "prediction": "x", "category": "wrong", "label_id": "wolf"}] * 3
    found = audit_verifier.Found(np.array([0, -1, 5]), np.array([True, False, True]), None)
    figures, lines = audit_verifier.compare(rows, "http_judge", found)
    assert figures["unverified"] == 1 and np.sum(figures["matrix"]) == 2
    assert figures["accuracy"] == 0.5 and "1 pairs have no verdict" in lines


@pytest.mark.parametrize(
    "columns, rows, message",
    [
        (["truth", "category"], [("a", "wrong")], "needs truth, category, and either"),
        (["truth", "prediction", "response", "category"], [("a", "b", "c", "wrong")], "either"),
        (["truth", "prediction", "category"], [], "has 0 rows"),
        (["truth", "prediction", "category"], [("a", "b", "right")], "row 1: category is 'right'"),
        (["truth", "prediction", "category"], [("a", "b")], "row 1: category is ''"),
    ],
)
def test_files_that_are_no_pairs_are_refused(tmp_path, columns, rows, message):
    path = write_pairs(tmp_path / "p.csv", columns, rows)
    with pytest.raises(ValueError, match=message):
        audit_verifier.read_pairs(path)
    with pytest.raises(
        ValueError, match="no pairs 'silver'; choose one of .*'adversarial', 'gold'"
    ):
        audit_verifier.read_pairs("silver")


def test_a_label_that_the_tree_lacks_is_refused(config, tmp_path):
    columns = ["truth", "prediction", "category"]
    path = write_pairs(tmp_path / "p.csv", columns, [("unicorn", "x", "wrong")])
    with pytest.raises(ValueError, match="has 0 labels named 'unicorn'; give the column label_id"):
        audit_verifier.audit(config, path, ["taxonomy"])
    with pytest.raises(ValueError, match="'oracle' is no choice for verify"):
        audit_verifier.audit(config, path, ["oracle"])
