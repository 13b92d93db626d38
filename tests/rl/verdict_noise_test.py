"""Label noise: one rank at most, at the rate that was asked for, and from identities alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from speciarl_jax.rl.verdict_noise import noisy

B, N = 500, 20
CATEGORY = np.random.default_rng(0).integers(-1, 6, (B, N)).astype(np.int32)
IMAGES = np.arange(B, dtype=np.uint32)


@pytest.mark.parametrize("rate", [0.05, 0.1, 0.25])
def test_verdicts_move_one_rank_at_the_rate(rate):
    got = np.asarray(jax.jit(lambda c: noisy(c, IMAGES, 3, rate=rate, seed=1))(CATEGORY))
    assert got.dtype == np.int32
    ranked = CATEGORY >= 0
    np.testing.assert_array_equal(got[~ranked], CATEGORY[~ranked])
    # Specific and more specific are one rank.
    moved = np.where(got != CATEGORY, got - np.minimum(CATEGORY, 4), 0)
    assert set(np.unique(moved)) == {-1, 0, 1} and got[ranked].min() == 0 and got.max() == 5
    assert set(got[(CATEGORY == 5) & (moved != 0)]) == {3}
    share = np.mean(moved[ranked] != 0)
    assert abs(share - rate) < 4 * np.sqrt(rate * (1 - rate) / ranked.sum())
    middle = (CATEGORY > 0) & (CATEGORY < 4) & (moved != 0)
    assert abs(np.mean(moved[middle] == 1) - 0.5) < 4 * 0.5 / np.sqrt(middle.sum())
    # One way at the ends, as often.
    for end, way in ((0, 1), (4, -1), (5, -1)):
        here = moved[CATEGORY == end]
        assert set(np.unique(here)) == {0, way}
        assert abs(np.mean(here != 0) - rate) < 4 * np.sqrt(rate * (1 - rate) / here.size)


def test_noise_follows_the_image_and_not_its_place():
    def run(category, images, step=3, seed=1):
        return np.asarray(noisy(jnp.asarray(category), images, step, rate=0.25, seed=seed))

    whole = run(CATEGORY, IMAGES)
    order = np.random.default_rng(1).permutation(B)
    np.testing.assert_array_equal(run(CATEGORY[order], IMAGES[order]), whole[order])
    np.testing.assert_array_equal(run(CATEGORY[:7], IMAGES[:7]), whole[:7])
    assert (run(CATEGORY, IMAGES, step=4) != whole).any()
    assert (run(CATEGORY, IMAGES, seed=2) != whole).any()
    np.testing.assert_array_equal(run(CATEGORY, IMAGES), whole)


def test_no_noise_changes_nothing_and_no_probability_is_refused():
    np.testing.assert_array_equal(noisy(CATEGORY, IMAGES, 0, rate=0.0, seed=0), CATEGORY)
    with pytest.raises(ValueError, match="label_noise.rate is 1.5"):
        noisy(CATEGORY, IMAGES, 0, rate=1.5, seed=0)
