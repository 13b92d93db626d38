"""Evaluation: every image once, in order, whatever the batch; the same in every call."""

import dataclasses
import json

import jax
import numpy as np
import pytest
import small_run

from speciarl_jax.evaluation.evaluator import Evaluator
from speciarl_jax.verifiers.category import Category

pytestmark = pytest.mark.usefixtures("shared_programs")


@pytest.fixture(scope="module")
def evaluator(run):
    return Evaluator(run)


@pytest.fixture(scope="module")
def judged(run, evaluator):
    return evaluator(run.lora)


def test_every_image_is_judged_once_and_in_order(run, evaluator, judged):
    source = run.eval_source
    # The last batch is short, so some rows of it only pad.
    assert len(source) % run.config.evaluation.batch_size and len(source) > 2 * 16
    assert [row["image_id"] for row in judged.rows] == [row["image_id"] for row in source]
    assert len(set(row["image_id"] for row in judged.rows)) == len(source)
    assert "image" not in judged.rows[0] and judged.rows[0]["style"] == "twemoji"
    assert judged.category_BN.shape == (len(source), 1) == (len(judged.responses), 1)


def test_answers_differ_between_images_and_carry_no_special_tokens(judged):
    texts = [text for group in judged.responses for text in group]
    assert len(set(texts)) > 3
    assert not any("<|" in text for text in texts)
    assert len(np.unique(judged.category_BN)) > 3


def test_the_size_of_a_batch_changes_nothing(run, judged):
    other = Evaluator(run, batch_size=5)(run.lora)
    assert other.responses == judged.responses and other.rows == judged.rows
    np.testing.assert_array_equal(other.category_BN, judged.category_BN)


def test_greedy_answers_are_the_same_in_every_call(run, evaluator, judged):
    again = evaluator(run.lora)
    assert again.responses == judged.responses
    np.testing.assert_array_equal(again.category_BN, judged.category_BN)


def test_other_adapters_give_other_answers(run, evaluator, judged):
    rng = np.random.default_rng(0)
    other = jax.tree.map(lambda x: x + rng.normal(0, 0.2, x.shape).astype(x.dtype), run.lora)
    assert evaluator(other).responses != judged.responses


@pytest.mark.slow
def test_samples_are_many_and_the_first_of_them_does_not_depend_on_their_number(run):
    several = Evaluator(run, num_rollouts=3)(run.lora, temperature=1.0)
    assert several.category_BN.shape == (len(several.rows), 3)
    assert all(len(group) == 3 for group in several.responses)
    assert np.mean([len(set(group)) > 1 for group in several.responses]) > 0.8
    best = several.category_BN.max(axis=1)
    assert (best >= several.category_BN[:, 0]).all() and (best > several.category_BN[:, 0]).any()
    one = Evaluator(run)(run.lora, temperature=1.0)
    assert [group[:1] for group in several.responses] == one.responses


def test_a_score_uses_the_configured_weights(run, small_config, evaluator):
    verdicts = np.array([[Category.GENERIC], [Category.WRONG]])
    assert evaluator.score(verdicts).specificity == pytest.approx(1 / 3)
    config = small_config(evaluation__weights__generic=0.75)
    other = Evaluator(dataclasses.replace(run, config=config))
    assert other.score(verdicts).specificity == pytest.approx(0.75)


def test_answers_are_written_a_line_an_image(judged, tmp_path):
    small_run.write_answers(tmp_path / "answers.jsonl", judged)
    lines = [json.loads(line) for line in (tmp_path / "answers.jsonl").read_text().splitlines()]
    assert len(lines) == len(judged.rows)
    for line, row, said, verdict in zip(
        lines, judged.rows, judged.responses, judged.category_BN, strict=True
    ):
        assert line["label"] == row["label"] and line["responses"] == said
        assert line["categories"] == [Category(int(verdict[0])).name.lower()]


@pytest.mark.parametrize("size", [-4, -1, 0])
def test_a_batch_that_cannot_be_cut_is_refused(run, size):
    with pytest.raises(
        ValueError, match=f"batch_size of an Evaluator is {size}, which cannot be cut"
    ):
        Evaluator(run, batch_size=size)
