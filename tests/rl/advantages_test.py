"""Group advantages against NumPy, group by group."""

import numpy as np
import pytest

from speciarl_jax.rl.advantages import BASELINES, group_advantages, has_signal


def oracle(reward, valid, baseline, normalize_by_std):
    advantage = np.zeros_like(reward, np.float64)
    for b in range(len(reward)):
        kept = reward[b][valid[b]].astype(np.float64)
        if len(kept) < 2 or kept.max() == kept.min():
            continue
        scale = kept.std(ddof=1) + 1e-6 if normalize_by_std else 1.0
        others = {
            "mean": kept.mean(),
            "leave_one_out": [np.delete(kept, i).mean() for i in range(len(kept))],
        }
        advantage[b, valid[b]] = (kept - others[baseline]) / scale
    return advantage


@pytest.mark.parametrize("baseline", BASELINES)
@pytest.mark.parametrize("normalize_by_std", [True, False])
def test_equals_numpy_on_random_groups(baseline, normalize_by_std):
    rng = np.random.default_rng(1)
    options = {"baseline": baseline, "normalize_by_std": normalize_by_std}
    for n in (1, 2, 5, 10):
        reward = rng.choice([-1.0, 0.0, 0.25, 1.0], (1000, n), p=[0.1, 0.4, 0.1, 0.4])
        valid = rng.random((1000, n)) < 0.8
        got = group_advantages(reward, valid, **options)
        np.testing.assert_allclose(got, oracle(reward, valid, **options), atol=1e-5)


def test_a_group_has_signal_where_its_verified_rewards_differ():
    reward = np.array([[1.0, 0, 0], [0.5, 0.5, 0.5], [1, 0, 0], [1, 0, 0], [np.nan, 1, 0]])
    valid = np.array([[1, 1, 1], [1, 1, 1], [0, 1, 1], [0, 0, 0], [0, 1, 1]], bool)
    np.testing.assert_array_equal(has_signal(reward, valid), [True, False, False, False, True])


def test_an_unknown_baseline_is_refused():
    with pytest.raises(ValueError, match="baseline 'median' is unknown; choose one of .*leave_one"):
        group_advantages(np.zeros((1, 2)), np.ones((1, 2), bool), baseline="median")


def test_equal_rewards_give_exactly_zero():
    # 0.1 is not representable: a rounded mean divided by epsilon would be a large advantage.
    got = group_advantages(np.full((3, 10), 0.1, np.float32), np.ones((3, 10), bool))
    np.testing.assert_array_equal(got, 0.0)


def test_nan_of_an_unverified_answer_does_not_spread():
    reward = np.asarray([[1.0, 0.0, np.nan]])
    got = group_advantages(reward, np.asarray([[True, True, False]]))
    np.testing.assert_allclose(got, [[0.70710, -0.70710, 0.0]], atol=1e-4)
