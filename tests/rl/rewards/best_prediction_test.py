"""The reward against the paper's equations, written a second time as plain Python loops."""

import numpy as np
import pytest

from speciarl_jax.rl.rewards import best_prediction

ORDER = ["W", "A", "G", "S-", "S", "S+"]


def oracle(names, valid, mode, unparsed_reward):
    """The equations, one group at a time, on names instead of numbers."""
    ranks = [ORDER.index(n) for n, v in zip(names, valid, strict=True) if v and n != "?"]
    best = ORDER[max(ranks)] if ranks else "W"
    bar = {"S+": "S", "W": "A"}.get(best, best)
    rewards, taken = [], False
    for name, is_valid in zip(names, valid, strict=True):
        if not is_valid:
            rewards.append(0.0)
        elif name == "?":
            rewards.append(unparsed_reward)
        elif ORDER.index(name) >= ORDER.index(bar) and not (mode == "single" and taken):
            rewards.append(1.0)
            taken = True
        else:
            rewards.append(0.0)
    return rewards


@pytest.mark.parametrize("mode", ["all", "single"])
def test_equals_the_equations_on_random_groups(mode):
    rng = np.random.default_rng(0)
    for n in (1, 2, 5, 10):
        # Skewed towards a few categories, so that ties, all-wrong and all-abstain groups occur.
        low = rng.integers(-1, 5, (2000, 1))
        high = np.minimum(low + rng.integers(2, 7, (2000, 1)), 6)
        category = rng.integers(low, high, (2000, n))
        valid = rng.random((2000, n)) < 0.9
        got = best_prediction.reward(category, valid, mode=mode, unparsed_reward=-1.0)
        names = [[(ORDER + ["?"])[c] for c in row] for row in category]
        want = [oracle(r, v, mode, -1.0) for r, v in zip(names, valid, strict=True)]
        np.testing.assert_array_equal(np.asarray(got), np.asarray(want, np.float32))


@pytest.mark.parametrize(
    ("group", "want"),
    [
        ([5, 4, 3, 0], [1, 1, 0, 0]),  # more specific and specific tie
        ([2, 2, 0, 1], [1, 1, 0, 0]),  # the best it can do is the group name
        ([1, 0, 0, 0], [1, 0, 0, 0]),  # abstaining is right where nothing better was found
        ([0, 0, 0, 0], [0, 0, 0, 0]),  # nobody earns anything
        ([-1, -1, 0, 0], [-1, -1, 0, 0]),  # no label could be read
    ],
)
def test_named_cases(group, want):
    got = best_prediction.reward(np.asarray([group]), np.ones((1, 4), bool))
    np.testing.assert_array_equal(np.asarray(got)[0], want)


def test_unverified_answer_neither_sets_the_bar_nor_earns():
    got = best_prediction.reward(np.asarray([[4, 2, -1]]), np.asarray([[False, True, False]]))
    np.testing.assert_array_equal(np.asarray(got)[0], [0, 1, 0])


def test_unknown_mode_is_refused():
    with pytest.raises(ValueError, match="first"):
        best_prediction.reward(np.zeros((1, 2), int), np.ones((1, 2), bool), mode="first")
