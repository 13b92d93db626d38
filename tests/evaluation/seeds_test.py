"""Statistics over seeds: against loops over resamples, and cases that can be computed by hand."""

import numpy as np
import pytest

from speciarl_jax.evaluation import bootstrap, metrics, seeds
from speciarl_jax.verifiers.category import Category

WEIGHTS = metrics.PRESETS["thirds"]
RNG = np.random.default_rng(3)


def drawn(*shape, lift=0.0):
    """Made-up verdicts of int [S, B]: images that are easy for all, seeds that differ."""
    easy_B, luck_S = RNG.normal(0, 1, shape[1]), RNG.normal(lift, 0.4, (shape[0], 1))
    value_SB = easy_B + luck_S + RNG.normal(0, 0.5, shape)
    return np.clip(np.floor(value_SB * 1.2 + 2), -1, 5).astype(int)


METHODS = {
    "base": seeds.Runs((), drawn(1, 60)),
    "a": seeds.Runs((0, 1, 2), drawn(3, 60)),
    "b": seeds.Runs((2, 1, 5), drawn(3, 60, lift=0.6)),
    "best": seeds.Runs((), drawn(1, 60, lift=1.5)),
}


def measure_of(categories, measure):
    return getattr(metrics.score(categories, WEIGHTS), measure)


def brute_force(statistic, count_seeds, resamples=1500):
    """Draws images and seeds, loop by loop; statistic(images, positions of seeds) -> number."""
    rng, found = np.random.default_rng(11), []
    for _ in range(resamples):
        images = rng.integers(60, size=60)
        positions = rng.integers(count_seeds, size=count_seeds - 1) if count_seeds > 1 else [0]
        found.append(statistic(images, positions))
    return np.array(found)


@pytest.fixture(scope="module")
def resampled():
    return seeds.SeedBootstrap(METHODS, WEIGHTS)


@pytest.mark.parametrize("measure", metrics.MEASURES)
def test_scores_and_intervals_are_those_of_a_loop(resampled, measure):
    verdicts = METHODS["a"].category_SB

    def mean(images, positions):
        return np.mean([measure_of(verdicts[i, images], measure) for i in positions])

    found = resampled.scores("a")[measure]
    by_seed = [measure_of(row, measure) for row in verdicts]
    assert found["by_seed"] == pytest.approx(by_seed)
    assert found["value"] == pytest.approx(np.mean(by_seed))
    want = brute_force(mean, 3)
    assert found["interval"] == pytest.approx(bootstrap.ends(want), abs=0.02)
    assert found["interval"][1] - found["interval"][0] > 0.1  # so that the tolerance says something


@pytest.mark.parametrize("measure", metrics.MEASURES)
def test_differences_are_those_of_a_loop_over_common_seeds(resampled, measure):
    # Seeds 1 and 2 are common to both, in other places.
    first, second = METHODS["a"].category_SB[[1, 2]], METHODS["b"].category_SB[[1, 0]]

    def mean(images, positions):
        return np.mean(
            [
                measure_of(second[i, images], measure) - measure_of(first[i, images], measure)
                for i in positions
            ]
        )

    found = resampled.paired("a", "b")
    assert found["seeds"] == [1, 2]
    one, want = found["differences"][measure], brute_force(mean, 2)
    assert one["value"] == pytest.approx(mean(np.arange(60), [0, 1]))
    assert one["interval"] == pytest.approx(bootstrap.ends(want), abs=0.03)
    assert one["by_seed"] == pytest.approx([mean(np.arange(60), [0]), mean(np.arange(60), [1])])
    low, high = one["interval"]
    assert one["excludes_zero"] == (not low <= 0 <= high)


def test_a_method_without_seeds_is_paired_with_every_seed(resampled):
    verdicts, base = METHODS["a"].category_SB, METHODS["base"].category_SB[0]

    def mean(images, positions):
        return np.mean([measure_of(verdicts[i, images], "hm") for i in positions]) - measure_of(
            base[images], "hm"
        )

    found = resampled.paired("base", "a")
    assert found["seeds"] == [0, 1, 2]
    want = brute_force(mean, 3)
    assert found["differences"]["hm"]["interval"] == pytest.approx(bootstrap.ends(want), abs=0.02)


def test_the_share_of_the_distance_is_that_of_a_loop(resampled):
    base, best = METHODS["base"].category_SB[0], METHODS["best"].category_SB[0]
    verdicts = METHODS["b"].category_SB

    def share(images, positions):
        low, high = (measure_of(one[images], "hm") for one in (base, best))
        mine = np.mean([measure_of(verdicts[i, images], "hm") for i in positions])
        return (mine - low) / (high - low)

    found = resampled.closed("b", "base", "best")
    assert found["value"] == pytest.approx(share(np.arange(60), [0, 1, 2]))
    assert found["interval"] == pytest.approx(bootstrap.ends(brute_force(share, 3)), abs=0.06)
    assert resampled.closed("base", "base", "best")["value"] == 0
    assert resampled.closed("best", "base", "best")["interval"] == pytest.approx([1, 1])
    # Where the best is worse than the base, there is no such distance.
    assert resampled.closed("a", "best", "base") is None


def test_without_seeds_the_intervals_are_those_of_images(resampled):
    base, best = (METHODS[name].category_SB[0] for name in ("base", "best"))
    found, want = resampled.scores("base"), bootstrap.intervals(base, WEIGHTS)
    tests = bootstrap.paired(base, best, WEIGHTS)
    for measure in metrics.MEASURES:
        assert found[measure]["interval"] == pytest.approx(want[measure], abs=0.01)
        one = resampled.paired("base", "best")["differences"][measure]
        assert one["interval"] == pytest.approx(tests[measure]["interval"], abs=0.02)
        assert one["p"] == pytest.approx(tests[measure]["p"], abs=0.02)


def test_the_variance_of_the_mean_over_seeds_is_not_too_small():
    """Seeds that give all images one verdict: then only the seeds vary."""
    rows = [[Category.SPECIFIC] * 20, [Category.WRONG] * 20, [Category.WRONG] * 20]
    found = seeds.SeedBootstrap({"a": seeds.Runs((0, 1, 2), np.array(rows))}, WEIGHTS)
    _, drawn_R = found._means("a", "correctness", (0, 1, 2))
    assert set(drawn_R) == {0, 0.5, 1}
    values = np.array([1, 0, 0])
    assert drawn_R.var() == pytest.approx(values.var(ddof=1) / 3, rel=0.05)


def test_methods_without_a_common_seed_are_not_paired():
    rows = drawn(2, 30)
    methods = {"a": seeds.Runs((0, 1), rows), "b": seeds.Runs((2, 3), rows)}
    assert seeds.SeedBootstrap(methods, WEIGHTS, resamples=10).paired("a", "b") is None


@pytest.mark.parametrize(
    ("methods", "said"),
    [
        ({"a": seeds.Runs((), drawn(1, 3)), "b": seeds.Runs((), drawn(1, 4))}, "same images"),
        ({"a": seeds.Runs((), np.zeros((1, 0), int))}, "at least one"),
        ({"a": seeds.Runs((0, 1), drawn(1, 3))}, r"a has seeds \(0, 1\), but 1 rows"),
    ],
)
def test_verdicts_that_do_not_fit_are_refused(methods, said):
    with pytest.raises(ValueError, match=said):
        seeds.SeedBootstrap(methods, WEIGHTS, resamples=2)


def test_runs_are_aligned_by_image_and_only_where_all_have_a_verdict():
    def line(image, category):
        return {"image_id": image, "label": "x", "categories": [category]}

    first = [line(1, "wrong"), line(2, "specific"), line(3, "generic")]
    second = [line(3, "abstain"), line(1, "unverified"), line(2, "wrong")]
    images, found = seeds.aligned({"a": seeds.verdicts_of(first), "b": seeds.verdicts_of(second)})
    assert [image for image, *_ in images] == [2, 3]
    assert found["a"].tolist() == [[Category.SPECIFIC], [Category.GENERIC]]
    assert found["b"].tolist() == [[Category.WRONG], [Category.ABSTAIN]]
    assert seeds.aligned({}) == ([], {})
