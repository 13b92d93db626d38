"""Group advantages against NumPy, group by group."""

import numpy as np
import pytest

from speciarl_jax.rl.advantages import BASELINES, STD_OVER, group_advantages, has_signal


def oracle(reward, valid, baseline, normalize_by_std, std_over):
    advantage = np.zeros_like(reward, np.float64)
    for b in range(len(reward)):
        kept = reward[b][valid[b]].astype(np.float64)
        if len(kept) < 2 or kept.max() == kept.min():
            continue
        by_group = normalize_by_std and std_over == "group"
        scale = kept.std(ddof=1) + 1e-6 if by_group else 1.0
        others = {
            "mean": kept.mean(),
            "leave_one_out": [np.delete(kept, i).mean() for i in range(len(kept))],
        }
        advantage[b, valid[b]] = (kept - others[baseline]) / scale
    if normalize_by_std and std_over == "batch" and valid.sum() > 1:
        taken = advantage[valid]
        advantage[valid] = (taken - taken.mean()) / (taken.std(ddof=1) + 1e-6)
    return advantage


@pytest.mark.parametrize("baseline", BASELINES)
@pytest.mark.parametrize(
    "normalize_by_std, std_over", [(True, "group"), (True, "batch"), (False, "group")]
)
def test_equals_numpy_on_random_groups(baseline, normalize_by_std, std_over):
    rng = np.random.default_rng(1)
    options = {"baseline": baseline, "normalize_by_std": normalize_by_std, "std_over": std_over}
    for n in (1, 2, 5, 10):
        reward = rng.choice([-1.0, 0.0, 0.25, 1.0], (1000, n), p=[0.1, 0.4, 0.1, 0.4])
        valid = rng.random((1000, n)) < 0.8
        got = group_advantages(reward, valid, **options)
        np.testing.assert_allclose(got, oracle(reward, valid, **options), atol=1e-5)


def test_a_group_has_signal_where_its_verified_rewards_differ():
    reward = np.array([[1.0, 0, 0], [0.5, 0.5, 0.5], [1, 0, 0], [1, 0, 0], [np.nan, 1, 0]])
    valid = np.array([[1, 1, 1], [1, 1, 1], [0, 1, 1], [0, 0, 0], [0, 1, 1]], bool)
    np.testing.assert_array_equal(has_signal(reward, valid), [True, False, False, False, True])


def test_an_unknown_choice_is_refused():
    group = np.zeros((1, 2)), np.ones((1, 2), bool)
    with pytest.raises(ValueError, match="baseline 'median' is unknown; choose one of .*leave_one"):
        group_advantages(*group, baseline="median")
    with pytest.raises(ValueError, match="std_over 'step' is unknown; choose one of .*batch"):
        group_advantages(*group, std_over="step")


@pytest.mark.parametrize("std_over", STD_OVER)
def test_equal_rewards_give_exactly_zero(std_over):
    # 0.1 is not representable: a rounded mean divided by epsilon would be a large advantage.
    group = np.full((3, 10), 0.1, np.float32), np.ones((3, 10), bool)
    np.testing.assert_array_equal(group_advantages(*group, std_over=std_over), 0.0)


def test_the_batchs_deviation_is_that_of_valid_answers_alone():
    reward = np.array([[1.0, 0, np.nan, 7], [0, 0, 0, 0], [5, 5, 5, 5]])
    valid = np.array([[1, 1, 0, 0], [1, 1, 1, 1], [0, 0, 0, 0]], bool)
    # Six valid answers, differences of 1/2, -1/2 and four of 0: a variance of 1/2 over 5.
    got = group_advantages(reward, valid, std_over="batch")
    want = np.zeros((3, 4))
    want[0, :2] = np.array([0.5, -0.5]) / np.sqrt(0.1)
    np.testing.assert_allclose(got, want, rtol=1e-5)


def test_nan_of_an_unverified_answer_does_not_spread():
    reward = np.asarray([[1.0, 0.0, np.nan]])
    got = group_advantages(reward, np.asarray([[True, True, False]]))
    np.testing.assert_allclose(got, [[0.70710, -0.70710, 0.0]], atol=1e-4)
