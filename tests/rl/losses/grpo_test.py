"""The clipped loss and its gradient against torch, written a second time from the equations."""

import jax
import numpy as np
import pytest

from speciarl_jax.rl.losses import grpo, token_weights


def random_batch(seed, b=3, n=4, t=7):
    rng = np.random.default_rng(seed)
    length = rng.integers(0, t + 1, (b, n, 1))
    old = rng.normal(-1.0, 0.7, (b, n, t)).astype(np.float32)
    return {
        "logp_BNT": (old + rng.normal(0, 0.8, old.shape)).astype(np.float32),
        "old_logp_BNT": old,
        "advantage_BN": rng.normal(0, 1, (b, n)).astype(np.float32),
        "mask_BNT": np.arange(t) < length,
    }


def torch_loss(batch, weights, clip_low, clip_high, dual_clip):
    import torch

    logp = torch.tensor(batch["logp_BNT"], requires_grad=True)
    ratio = torch.exp(logp - torch.tensor(batch["old_logp_BNT"]))
    advantage = torch.tensor(batch["advantage_BN"])[..., None].expand_as(ratio)
    upper = -advantage * torch.clamp(ratio, 1 - clip_low, 1 + clip_high)
    positive = torch.maximum(-advantage * ratio, upper)
    negative = torch.minimum(positive, -advantage * dual_clip)
    token = torch.where(advantage < 0, negative, positive)
    loss = (token * torch.tensor(np.asarray(weights))).sum()
    loss.backward()
    return loss.item(), logp.grad.numpy()


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("clips", [(0.2, 0.2, 3.0), (0.2, 0.28, 10.0)])
@pytest.mark.parametrize("weigh", [token_weights.token_mean, token_weights.sequence_mean])
def test_value_and_gradient_equal_torch(seed, clips, weigh):
    batch = random_batch(seed)
    weights = weigh(batch["mask_BNT"])

    def loss(logp):
        loss_BNT, _ = grpo.policy_loss(
            logp,
            batch["old_logp_BNT"],
            batch["advantage_BN"],
            batch["mask_BNT"],
            clip_low=clips[0],
            clip_high=clips[1],
            dual_clip=clips[2],
        )
        return (weights * loss_BNT).sum()

    value, gradient = jax.value_and_grad(loss)(batch["logp_BNT"])
    want_value, want_gradient = torch_loss(batch, weights, *clips)
    np.testing.assert_allclose(value, want_value, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(gradient, want_gradient, rtol=1e-4, atol=1e-6)


def test_arbitrary_values_outside_the_answers_change_nothing():
    batch = random_batch(0)
    weights = token_weights.token_mean(batch["mask_BNT"])
    args = batch["old_logp_BNT"], batch["advantage_BN"], batch["mask_BNT"]

    def loss(logp):
        return (weights * grpo.policy_loss(logp, *args)[0]).sum()

    broken = np.where(batch["mask_BNT"], batch["logp_BNT"], np.inf)
    value, gradient = jax.value_and_grad(loss)(broken)
    np.testing.assert_allclose(value, loss(batch["logp_BNT"]), rtol=1e-6)
    assert np.isfinite(gradient).all()
    np.testing.assert_array_equal(np.asarray(gradient)[~batch["mask_BNT"]], 0.0)


def test_micro_batches_add_up_to_the_batch():
    batch = random_batch(3, b=6)
    for weigh in (token_weights.token_mean, token_weights.sequence_mean):
        weights = weigh(batch["mask_BNT"])

        def loss(part, weights=weights):
            names = ("logp_BNT", "old_logp_BNT", "advantage_BN", "mask_BNT")
            loss_BNT, _ = grpo.policy_loss(*(batch[name][part] for name in names))
            return (weights[part] * loss_BNT).sum()

        whole = loss(slice(None))
        parts = sum(loss(slice(i, i + 2)) for i in (0, 2, 4))
        np.testing.assert_allclose(whole, parts, rtol=1e-5)


def test_weights_sum_to_one_and_share_as_they_say():
    mask = np.zeros((2, 2, 4), bool)
    mask[0, 0, :4] = mask[0, 1, :1] = True
    token, sequence = token_weights.token_mean(mask), token_weights.sequence_mean(mask)
    np.testing.assert_allclose(token[mask], [0.2] * 5)
    np.testing.assert_allclose(sequence[0, 0], [0.125] * 4)
    np.testing.assert_allclose(sequence[0, 1], [0.5, 0, 0, 0])
    np.testing.assert_array_equal(token_weights.token_mean(np.zeros_like(mask)), 0.0)


def test_dual_clip_below_one_is_refused():
    batch = random_batch(0)
    with pytest.raises(ValueError, match="dual_clip is 0.5"):
        grpo.policy_loss(
            batch["logp_BNT"],
            batch["old_logp_BNT"],
            batch["advantage_BN"],
            batch["mask_BNT"],
            dual_clip=0.5,
        )
