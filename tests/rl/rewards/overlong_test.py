"""The length penalty against DAPO's three cases."""

import numpy as np
import pytest

from speciarl_jax.rl.rewards import overlong


def dapo(length, longest, buffer):
    """Equation 13 of the paper, a case at a time."""
    if length <= longest - buffer:
        return 0.0
    if length <= longest:
        return ((longest - buffer) - length) / buffer
    return -1.0


@pytest.mark.parametrize("longest, buffer", [(2048, 512), (24, 6), (24, 24)])
def test_equals_the_equation(longest, buffer):
    length = np.arange(0, longest + 5)[None]
    got = overlong.penalty(length, max_tokens=longest, buffer=buffer, weight=0.5)
    want = [[-0.5 * dapo(n, longest, buffer) for n in length[0]]]
    np.testing.assert_allclose(got, want, atol=1e-6)
    assert got.dtype == np.float32


def test_without_a_buffer_only_full_answers_pay():
    got = overlong.penalty(np.array([[0, 23, 24]]), max_tokens=24, buffer=0, weight=2.0)
    np.testing.assert_array_equal(got, [[0, 0, 2]])


@pytest.mark.parametrize("buffer, weight", [(25, 1.0), (-1, 1.0), (6, -1.0)])
def test_what_does_not_fit_is_refused(buffer, weight):
    with pytest.raises(ValueError, match="must lie between 0 and config.rollout.max_tokens, 24"):
        overlong.penalty(np.ones((1, 2)), max_tokens=24, buffer=buffer, weight=weight)
