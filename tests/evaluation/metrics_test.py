"""Correctness, specificity and their harmonic mean against a count by hand."""

import fractions

import numpy as np
import pytest

from speciarl_jax.evaluation import metrics
from speciarl_jax.verifiers.category import Category

WEIGHTS = {"generic": 1 / 3, "less_specific": 2 / 3, "specific": 1.0, "more_specific": 1.0}
NAMES = ["unparsed", "wrong", "abstain", "generic", "less_specific", "specific", "more_specific"]


@pytest.mark.parametrize("seed", range(20))
def test_a_score_equals_a_count_by_hand(seed):
    rng = np.random.default_rng(seed)
    # Some draws lack whole categories.
    allowed = rng.choice(np.arange(-1, 6), rng.integers(1, 8), replace=False)
    drawn = rng.choice(allowed, rng.integers(1, 200))
    weights = dict(zip(NAMES[3:], rng.random(4), strict=True))
    worth = {c: weights[NAMES[c + 1]] for c in range(2, 6)}
    gained = [worth[c] for c in drawn.tolist() if c >= 2]
    correctness = len(gained) / len(drawn)
    specificity = sum(gained) / len(gained) if gained else 0.0
    both = correctness and specificity
    hm = 2 / (1 / correctness + 1 / specificity) if both else 0.0
    got = metrics.score(drawn.astype(np.int32), weights)
    np.testing.assert_allclose(
        [got.correctness, got.specificity, got.hm], [correctness, specificity, hm], rtol=1e-12
    )
    assert got.histogram == {n: drawn.tolist().count(i - 1) for i, n in enumerate(NAMES)}


def test_a_small_example_in_exact_fractions():
    verdicts = [Category.SPECIFIC, Category.GENERIC, Category.WRONG, Category.ABSTAIN]
    got = metrics.score(np.array(verdicts), WEIGHTS)
    half, two_thirds = fractions.Fraction(1, 2), fractions.Fraction(2, 3)
    assert got.correctness == half
    assert got.specificity == pytest.approx(float(two_thirds))
    assert got.hm == pytest.approx(float(2 * half * two_thirds / (half + two_thirds)))


def test_the_shape_of_the_verdicts_does_not_matter():
    verdicts = np.random.default_rng(0).integers(-1, 6, (6, 4))
    assert metrics.score(verdicts, WEIGHTS) == metrics.score(verdicts.ravel(), WEIGHTS)


@pytest.mark.parametrize("name", ["unparsed", "wrong", "abstain"])
def test_nothing_correct_scores_nothing(name):
    got = metrics.score(np.full(5, NAMES.index(name) - 1), WEIGHTS)
    assert (got.correctness, got.specificity, got.hm) == (0.0, 0.0, 0.0)
    assert got.histogram[name] == 5 and sum(got.histogram.values()) == 5


def test_everything_specific_scores_one():
    got = metrics.score(np.array([4, 5]), WEIGHTS)
    assert (got.correctness, got.specificity, got.hm) == (1.0, 1.0, 1.0)


def test_correct_answers_that_are_worth_nothing_have_no_harmonic_mean():
    got = metrics.score(np.array([2, 2]), WEIGHTS | {"generic": 0.0})
    assert (got.correctness, got.specificity, got.hm) == (1.0, 0.0, 0.0)


@pytest.mark.parametrize(
    "verdicts, weights, said",
    [
        ([], WEIGHTS, "no answers to score"),
        ([6], WEIGHTS, r"\[6\] are no categories"),
        ([0, -2, 9], WEIGHTS, r"\[-2, 9\] are no categories"),
        ([4], {"specific": 1.0}, "weights of specificity .*must be .*less_specific.*got"),
        ([4], WEIGHTS | {"wrong": 0.5}, "config.evaluation.weights. must be"),
        ([4], WEIGHTS | {"generic": 1.5}, r"numbers in \[0, 1\].*1.5"),
        ([4], WEIGHTS | {"generic": float("nan")}, r"numbers in \[0, 1\].*nan"),
    ],
)
def test_what_cannot_be_scored_is_refused(verdicts, weights, said):
    with pytest.raises(ValueError, match=said):
        metrics.score(np.array(verdicts, int), weights)


def test_weights_have_names():
    section = {"preset": "", **WEIGHTS}
    assert metrics.configured_weights(section) == WEIGHTS
    assert metrics.configured_weights(section | {"preset": "authors"}) == {
        **{"generic": 0.2, "less_specific": 0.6, "specific": 1.0, "more_specific": 1.0}
    }
    with pytest.raises(ValueError, match="preset is 'thrids'; choose one of .'authors', 'thirds'."):
        metrics.configured_weights(section | {"preset": "thrids"})
    with pytest.raises(ValueError, match="must be numbers in .0, 1."):
        metrics.configured_weights({"preset": "", "generic": 2.0})
    from configs import quickstart

    weights = metrics.configured_weights(quickstart.get_config().evaluation.weights)
    named = metrics.named_weights(weights)
    assert named == metrics.PRESETS["thirds"] | {"name": "thirds"}
    assert metrics.numbers_of(named) == weights
    assert metrics.named_weights(weights | {"generic": 0.5})["name"] == "custom"
    assert metrics.describe_weights(metrics.PRESETS["authors"]) == (
        "Weights of specificity: authors (generic 0.2, less specific 0.6, specific 1, "
        "more specific 1)."
    )
