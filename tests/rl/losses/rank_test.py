"""Rank-aware credit against loops over pairs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from speciarl_jax.rl.losses import rank

IMAGES, ANSWERS, TOKENS = 5, 4, 6


def made_up(seed):
    """Log-probabilities, mask, advantages with ties, and validity; one group has no pair."""
    rng = np.random.default_rng(seed)
    mask = np.arange(TOKENS) < rng.integers(1, TOKENS + 1, (IMAGES, ANSWERS, 1))
    logp = rng.normal(-2, 1, mask.shape).astype(np.float32)
    advantage = rng.integers(-1, 2, (IMAGES, ANSWERS)).astype(np.float32)
    advantage[3] = 0.5
    return logp, mask, advantage, rng.random(advantage.shape) < 0.8


def by_loops(logp, mask, advantage, valid):
    """The loss of each group in float64, and how many groups have a pair."""
    found = []
    for b in range(IMAGES):
        confidence = [logp[b, n, mask[b, n]].astype(np.float64).mean() for n in range(ANSWERS)]
        found.append(
            [
                np.log1p(np.exp(confidence[worse] - confidence[better]))
                for better in range(ANSWERS)
                for worse in range(ANSWERS)
                if valid[b, better] and valid[b, worse]
                if advantage[b, better] > advantage[b, worse]
            ]
        )
    return [np.mean(pairs) if pairs else 0.0 for pairs in found], sum(map(bool, found))


@pytest.mark.parametrize("seed", range(4))
def test_equals_a_loop_over_pairs(seed):
    logp, mask, advantage, valid = made_up(seed)
    want, groups = by_loops(logp, mask, advantage, valid)
    got = rank.loss(logp, mask, advantage, valid)
    np.testing.assert_allclose(got, want, rtol=1e-5)
    assert got.dtype == jnp.float32 and got[3] == 0 and 0 < groups < IMAGES
    assert float(rank.num_ranked(advantage, valid)) == groups


def test_the_gradient_is_that_of_the_loop_and_stops_at_the_mask():
    logp, mask, advantage, valid = made_up(0)
    weight = np.arange(1, IMAGES + 1)
    gradient = jax.grad(lambda x: jnp.sum(weight * rank.loss(x, mask, advantage, valid)))(logp)
    for index in np.ndindex(logp.shape):
        moved = [logp.astype(np.float64) for _ in range(2)]
        moved[0][index] += 1e-4
        moved[1][index] -= 1e-4
        up, down = (weight @ by_loops(x, mask, advantage, valid)[0] for x in moved)
        assert gradient[index] == pytest.approx((up - down) / 2e-4, abs=1e-5)
    assert np.abs(gradient[mask]).max() > 0.01 and not gradient[~mask].any()
    hidden = np.where(mask, logp, np.nan)
    assert np.isfinite(rank.loss(hidden, mask, advantage, valid)).all()


def test_without_any_pair_nothing_is_divided_by_zero():
    logp, mask, _, valid = made_up(1)
    flat = np.zeros((IMAGES, ANSWERS), np.float32)
    assert float(rank.num_ranked(flat, valid)) == 1.0
    assert not np.any(rank.loss(logp, mask, flat, valid))
