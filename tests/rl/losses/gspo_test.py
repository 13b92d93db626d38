"""GSPO's loss and gradient against torch, answer by answer, written from the equations."""

import jax
import numpy as np
import pytest

from speciarl_jax.rl.losses import gspo, token_weights


def random_batch(seed, b=3, n=4, t=7):
    rng = np.random.default_rng(seed)
    length = rng.integers(0, t + 1, (b, n, 1))
    old = rng.normal(-1.0, 0.7, (b, n, t)).astype(np.float32)
    logp = (old + rng.normal(0, 0.5, old.shape)).astype(np.float32)
    advantage = rng.normal(0, 1, (b, n)).astype(np.float32)
    return logp, old, advantage, np.arange(t) < length


def torch_loss(logp, old, advantage, mask, low, high):
    import torch

    logp = torch.tensor(logp, dtype=torch.float64, requires_grad=True)
    losses = []
    for b, n in zip(*np.nonzero(mask.any(axis=-1)), strict=True):
        taken = np.flatnonzero(mask[b, n])
        difference = logp[b, n, taken] - torch.tensor(old[b, n, taken])
        s = torch.exp(difference.sum() / len(taken))
        a = float(advantage[b, n])
        losses.append(-torch.minimum(s * a, torch.clamp(s, 1 - low, 1 + high) * a))
    loss = torch.stack(losses).mean()
    loss.backward()
    return loss.item(), logp.grad.numpy()


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("clip", [(3e-4, 4e-4), (0.2, 0.3)])
def test_value_and_gradient_equal_torch(seed, clip):
    logp, old, advantage, mask = random_batch(seed)
    weights = token_weights.sequence_mean(mask)

    def loss(logp):
        options = {"clip_low": clip[0], "clip_high": clip[1]}
        return (weights * gspo.policy_loss(logp, old, advantage, mask, **options)[0]).sum()

    value, gradient = jax.value_and_grad(loss)(logp)
    want_value, want_gradient = torch_loss(logp, old, advantage, mask, *clip)
    np.testing.assert_allclose(value, want_value, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(gradient, want_gradient, rtol=1e-4, atol=1e-6)
    assert np.abs(want_gradient).max() > 1e-3


def test_metrics_count_whole_answers():
    logp, old, advantage, mask = random_batch(7)
    weights = token_weights.sequence_mean(mask)
    _, values = gspo.policy_loss(logp, old, advantage, mask, clip_low=0.1, clip_high=0.1)
    metrics = {name: (weights * value_BNT).sum() for name, value_BNT in values.items()}
    difference = np.where(mask, logp - old, 0).sum(-1) / np.maximum(mask.sum(-1), 1)
    ratio, some = np.exp(difference), mask.any(-1)
    clipped = np.where(advantage > 0, ratio > 1.1, ratio < 0.9)[some]
    assert 0 < clipped.mean() < 1
    np.testing.assert_allclose(metrics["clip_frac"], clipped.mean(), rtol=1e-5)
    np.testing.assert_allclose(metrics["ratio"], ratio[some].mean(), rtol=1e-5)
    np.testing.assert_allclose(metrics["approx_kl"], -difference[some].mean(), rtol=1e-4)


def test_arbitrary_values_outside_the_answers_change_nothing():
    logp, old, advantage, mask = random_batch(0)
    weights = token_weights.sequence_mean(mask)

    def loss(logp):
        return (weights * gspo.policy_loss(logp, old, advantage, mask)[0]).sum()

    broken = np.where(mask, logp, np.nan)
    value, gradient = jax.value_and_grad(loss)(broken)
    np.testing.assert_allclose(value, loss(logp), rtol=1e-6)
    np.testing.assert_array_equal(np.asarray(gradient)[~mask], 0.0)
