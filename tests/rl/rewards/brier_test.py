"""The Brier score of a completion's probability against a loop."""

import numpy as np
import pytest

from speciarl_jax.rl.rewards import brier


def test_equals_the_equation():
    rng = np.random.default_rng(0)
    mask = np.arange(5) < rng.integers(1, 6, (3, 4, 1))
    logp = rng.uniform(-1.0, 0.0, mask.shape).astype(np.float32)
    reward = rng.choice([-1.0, 0.0, 0.3, 1.0], (3, 4)).astype(np.float32)
    got = brier.penalty(np.where(mask, logp, np.nan), mask, reward, weight=0.7)
    for index in np.ndindex(3, 4):
        probability = np.exp(logp[index][mask[index]].astype(np.float64).sum())
        rewarded = 1 if reward[index] > 0 else 0
        assert got[index] == pytest.approx(0.7 * (probability - rewarded) ** 2, rel=1e-5)
    assert got.dtype == np.float32


def test_what_is_certain_pays_nothing_when_right_and_all_when_wrong():
    certain, mask = np.zeros((1, 2, 3), np.float32), np.ones((1, 2, 3), bool)
    got = brier.penalty(certain, mask, np.array([[1.0, 0.0]]), weight=2.0)
    np.testing.assert_array_equal(got, [[0.0, 2.0]])


def test_a_negative_weight_is_refused():
    with pytest.raises(ValueError, match=r"brier_weight is -1.0; .* set it above 0, or to 0"):
        brier.penalty(np.zeros((1, 1, 1)), np.ones((1, 1, 1), bool), np.zeros((1, 1)), weight=-1.0)
