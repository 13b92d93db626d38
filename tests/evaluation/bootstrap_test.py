"""Intervals, paired tests, best-of-n and calibration against slow independent counts."""

import itertools
import random

import numpy as np
import pytest

from speciarl_jax.evaluation import bootstrap, metrics

WEIGHTS = {"generic": 0.3, "less_specific": 0.6, "specific": 1.0, "more_specific": 0.9}
WORTH = {2: 0.3, 3: 0.6, 4: 1.0, 5: 0.9}


def slow(categories):
    """Correctness, specificity and HM, one answer after the other."""
    gained = [WORTH[c] for c in categories if c in WORTH]
    correctness = len(gained) / len(categories)
    specificity = sum(gained) / len(gained) if gained else 0.0
    both = correctness and specificity
    return correctness, specificity, 2 / (1 / correctness + 1 / specificity) if both else 0.0


def drawn(seed, *shape):
    """Random verdicts; some draws lack whole categories."""
    rng = np.random.default_rng(seed)
    allowed = rng.choice(np.arange(-1, 6), rng.integers(2, 8), replace=False)
    return rng.choice(allowed, shape)


@pytest.mark.parametrize("seed", range(10))
def test_measures_of_many_sets_are_those_of_each(seed):
    sets = [drawn(seed + 100 * i, 1 + seed * 3) for i in range(5)]
    found = bootstrap.measures([bootstrap.histogram(s) for s in sets], WEIGHTS)
    for i, categories in enumerate(sets):
        got = [found[name][i] for name in bootstrap.MEASURES]
        np.testing.assert_allclose(got, slow(categories.tolist()), rtol=1e-12)
        score = metrics.score(categories, WEIGHTS)
        np.testing.assert_allclose(got, [score.correctness, score.specificity, score.hm])


@pytest.mark.parametrize("seed", range(4))
def test_intervals_are_those_of_images_drawn_one_by_one(seed):
    categories = drawn(seed, 60).tolist()
    rng = random.Random(seed)
    resampled = [slow(rng.choices(categories, k=60)) for _ in range(2000)]
    found = bootstrap.intervals(np.array(categories), WEIGHTS, seed=seed)
    for name, values in zip(bootstrap.MEASURES, zip(*resampled, strict=True), strict=True):
        want = np.quantile(values, [0.025, 0.975])
        # Both ends are estimates; a wrong level or a wrong number of images is further off.
        np.testing.assert_allclose(found[name], want, atol=0.025)
        assert (
            found[name][0]
            <= dict(zip(bootstrap.MEASURES, slow(categories), strict=True))[name] + 1e-9
            and found[name][0] <= found[name][1]
        )


def test_an_interval_narrows_with_more_images_and_widens_with_the_level():
    categories = drawn(3, 100)

    def width(x, level):
        low, high = bootstrap.intervals(x, WEIGHTS, level=level)["correctness"]
        return high - low

    assert width(np.tile(categories, 4), 0.95) == pytest.approx(
        width(categories, 0.95) / 2, rel=0.1
    )
    assert width(categories, 0.99) > width(categories, 0.95) > width(categories, 0.5) > 0


@pytest.mark.parametrize("seed", range(4))
def test_paired_differences_are_those_of_images_drawn_one_by_one(seed):
    a, b = drawn(seed, 50), drawn(seed + 50, 50)
    b = np.where(np.arange(50) % 2, a, b)  # half of them the same
    rng, differences = random.Random(seed), []
    for _ in range(1500):
        chosen = rng.choices(range(50), k=50)
        before, after = slow(a[chosen].tolist()), slow(b[chosen].tolist())
        differences.append(np.subtract(after, before))
    found = bootstrap.paired(a, b, WEIGHTS, seed=seed)
    value = np.subtract(slow(b.tolist()), slow(a.tolist()))
    for i, name in enumerate(bootstrap.MEASURES):
        mine = np.array(differences)[:, i]
        row = found[name]
        assert row["value"] == pytest.approx(value[i], abs=1e-12)
        np.testing.assert_allclose(row["interval"], np.quantile(mine, [0.025, 0.975]), atol=0.035)
        p = min(1.0, 2 * min(np.mean(mine <= 1e-12), np.mean(mine >= -1e-12)))
        assert row["p"] == pytest.approx(p, abs=0.04)


def test_a_paired_test_finds_what_unpaired_intervals_hide_and_nothing_in_equal_runs():
    a = drawn(1, 400)
    b = a.copy()
    b[np.flatnonzero(a == a.min())[:25]] = 4
    row = bootstrap.paired(a, b, WEIGHTS)["correctness"]
    assert row["p"] < 0.001 and row["interval"][0] > 0
    separate = [bootstrap.intervals(x, WEIGHTS)["correctness"] for x in (a, b)]
    assert separate[0][1] > separate[1][0]  # these overlap
    same = bootstrap.paired(a, a, WEIGHTS)["hm"]
    assert same == {"value": 0.0, "interval": [0.0, 0.0], "p": 1.0}


def test_p_is_uniform_where_nothing_differs():
    rng = np.random.default_rng(0)
    ps = [
        bootstrap.paired(
            rng.choice([0, 2, 4], 80), rng.choice([0, 2, 4], 80), WEIGHTS, resamples=999, seed=i
        )["correctness"]["p"]
        for i in range(200)
    ]
    # Verdicts are counts, so ties make the test a little conservative.
    assert 0.005 < np.mean(np.array(ps) < 0.05) < 0.09
    assert 0.35 < np.mean(np.array(ps) < 0.5) < 0.60


@pytest.mark.parametrize("samples", [1, 3, 5, 8])
def test_the_best_of_n_is_the_mean_over_all_subsets(samples):
    categories = drawn(samples, 7, samples)
    rows = bootstrap.best_of(categories, WEIGHTS)
    assert [row["n"] for row in rows] == [n for n in (1, 2, 4, 8) if n <= samples] + [samples] * (
        samples not in (1, 2, 4, 8)
    )
    for row in rows:
        subsets = list(itertools.combinations(range(samples), row["n"]))
        correct = worth = 0.0
        for image in categories.tolist():
            bests = [max(image[i] for i in subset) for subset in subsets]
            correct += sum(c in WORTH for c in bests) / len(subsets)
            worth += sum(WORTH.get(c, 0.0) for c in bests) / len(subsets)
        correctness, specificity = correct / 7, worth / correct if correct else 0.0
        total = correctness + specificity
        want = [correctness, specificity, 2 * correctness * specificity / total if total else 0.0]
        got = [row[name] for name in bootstrap.MEASURES]
        np.testing.assert_allclose(got, want, rtol=1e-12, atol=1e-15)


def test_the_best_of_all_samples_is_the_score_of_the_best_answers():
    categories = drawn(5, 30, 64)
    last = bootstrap.best_of(categories, WEIGHTS)[-1]
    want = metrics.score(categories.max(axis=1), WEIGHTS)
    assert last["n"] == 64 and last["hm"] == pytest.approx(want.hm, rel=1e-12)


@pytest.mark.parametrize("seed", range(5))
def test_calibration_is_a_mean_over_each_bin(seed):
    rng = np.random.default_rng(seed)
    shares = rng.integers(1, 17, 200) / 16
    correct = rng.random(200) < shares
    rows = bootstrap.calibration(shares, correct)
    assert sum(row["images"] for row in rows) == 200
    error = 0.0
    for row in rows:
        inside = [
            i
            for i, share in enumerate(shares)
            if row["low"] <= share < row["high"] or (share == 1 and row["high"] == 1)
        ]
        assert len(inside) == row["images"] > 0
        assert row["agreement"] == pytest.approx(np.mean(shares[inside]))
        assert row["correctness"] == pytest.approx(np.mean(correct[inside]))
        error += len(inside) / 200 * abs(row["agreement"] - row["correctness"])
    assert bootstrap.calibration_error(rows) == pytest.approx(error)


def test_a_share_on_an_edge_belongs_to_the_bin_above():
    rows = bootstrap.calibration([0.3, 0.7, 0.6, 1.0], [True] * 4)
    assert [(row["low"], row["images"]) for row in rows] == [
        (0.3, 1),
        (0.6, 1),
        (0.7, 1),
        (0.9, 1),
    ]
    assert bootstrap.calibration([], []) == [] and bootstrap.calibration_error([]) is None


def test_verdicts_that_cannot_be_paired_are_refused():
    for a, b in (([1], [1, 2]), ([], [])):
        with pytest.raises(ValueError, match="the same images, at least one"):
            bootstrap.paired(np.array(a, int), np.array(b, int), WEIGHTS)
