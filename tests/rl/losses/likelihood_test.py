"""Supervised loss against torch's cross-entropy."""

import jax
import numpy as np
import pytest

from speciarl_jax.rl.losses import likelihood, token_weights


@pytest.mark.parametrize("seed", range(3))
def test_value_and_gradient_equal_cross_entropy(seed):
    import torch

    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 1, (3, 1, 5, 7)).astype(np.float32)
    tokens = rng.integers(0, 7, (3, 1, 5))
    mask = np.arange(5) < rng.integers(1, 6, (3, 1, 1))

    def loss(logits):
        logp = jax.nn.log_softmax(logits)
        logp = (
            np.where(mask, 0, np.nan)
            + jax.numpy.take_along_axis(logp, tokens[..., None], axis=-1)[..., 0]
        )
        loss_BNT, _ = likelihood.policy_loss(logp, logp, np.ones((3, 1)), mask)
        return (token_weights.token_mean(mask) * loss_BNT).sum()

    value, gradient = jax.value_and_grad(loss)(logits)
    x = torch.tensor(logits, requires_grad=True)
    labels = np.where(mask, tokens, -100)
    want = torch.nn.functional.cross_entropy(x.reshape(-1, 7), torch.tensor(labels).reshape(-1))
    want.backward()
    np.testing.assert_allclose(value, want.item(), rtol=1e-5)
    np.testing.assert_allclose(gradient, x.grad.numpy(), rtol=1e-4, atol=1e-6)
