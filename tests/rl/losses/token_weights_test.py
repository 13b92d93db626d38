"""Token weights against loops over answers."""

import numpy as np
import pytest

from speciarl_jax.rl.losses import token_weights

WEIGHTS = {
    "token_mean": lambda mask: token_weights.token_mean(mask),
    "sequence_mean": lambda mask: token_weights.sequence_mean(mask),
    "constant": lambda mask: token_weights.constant(mask, length=12),
}


def oracle(name, loss, mask):
    """The reductions as the papers write them; an answer without tokens takes no part."""
    answers = [x[m] for x, m in zip(loss, mask, strict=True) if m.any()]
    if not answers:
        return 0.0
    if name == "token_mean":
        return np.concatenate(answers).mean()
    if name == "sequence_mean":
        return np.mean([a.mean() for a in answers])
    return np.mean([a.sum() / 12 for a in answers])


@pytest.mark.parametrize("name", WEIGHTS)
@pytest.mark.parametrize("seed", range(5))
def test_a_weighted_sum_is_the_reduction_of_the_paper(name, seed):
    rng = np.random.default_rng(seed)
    mask = np.arange(8) < rng.integers(0, 9, (4, 5, 1))
    mask[0] &= seed < 3
    loss = rng.normal(0, 1, mask.shape)
    got = np.sum(np.asarray(WEIGHTS[name](mask), np.float64) * loss)
    want = oracle(name, loss.reshape(-1, 8), mask.reshape(-1, 8))
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-7)
    assert float(np.sum(WEIGHTS[name](np.zeros_like(mask)))) == 0.0


def test_a_constant_of_nothing_is_refused():
    with pytest.raises(ValueError, match="token_weights_options.length is 0"):
        token_weights.constant(np.ones((1, 1, 2), bool), length=0)
