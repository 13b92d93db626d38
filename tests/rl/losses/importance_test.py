"""Truncated importance weights, and the mismatch of sampler and trainer, against NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from speciarl_jax.rl.losses import grpo, importance, token_weights


def logps(seed, shape=(3, 4, 6)):
    rng = np.random.default_rng(seed)
    sampler = rng.normal(-2, 1, shape).astype(np.float32)
    return (sampler + rng.normal(0, 0.8, shape)).astype(np.float32), sampler


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("cap", [0.9, 2.0])
def test_weight_is_the_truncated_ratio_and_has_no_gradient(seed, cap):
    trainer, sampler = logps(seed)
    ratio = np.exp(trainer.astype(np.float64) - sampler)
    got = importance.truncated_weight(trainer, sampler, cap=cap)
    np.testing.assert_allclose(got, np.minimum(ratio, cap), rtol=1e-5)
    assert (ratio > cap).any() and (ratio < cap).any()
    gradient = jax.grad(lambda t: jnp.sum(importance.truncated_weight(t, sampler, cap=cap)))
    np.testing.assert_array_equal(gradient(trainer), 0.0)
    assert np.isfinite(importance.truncated_weight(np.float32(1e4), np.float32(0), cap=cap))


def test_without_truncation_it_turns_samples_of_one_policy_into_those_of_another():
    # Enumerated over a vocabulary: E_sampler[w f] = E_trainer[f].
    rng = np.random.default_rng(0)
    sampler, trainer = (np.asarray(jax.nn.log_softmax(x)) for x in rng.normal(0, 1, (2, 9)))
    f = rng.normal(0, 1, 9)
    weight = importance.truncated_weight(trainer, sampler, cap=1e6)
    np.testing.assert_allclose(
        np.sum(np.exp(sampler) * weight * f), np.sum(np.exp(trainer) * f), rtol=1e-5
    )


def ratios(trainer, sampler, mask, of):
    """Rollout by rollout: of each token, of the product over its tokens, or of their mean."""
    found = np.ones(trainer.shape)
    for bn in np.ndindex(trainer.shape[:2]):
        gap = (trainer[bn].astype(np.float64) - sampler[bn])[mask[bn]]
        whole = {"token": gap, "sequence": gap.sum(), "geometric": gap.sum() / max(len(gap), 1)}
        found[bn][mask[bn]] = np.exp(whole[of])
    return found


@pytest.mark.parametrize("seed", range(4))
def test_weights_of_rollouts_and_masks_equal_loops(seed):
    trainer, sampler = logps(seed)
    mask = np.arange(6) < np.random.default_rng(seed).integers(0, 7, (3, 4, 1))
    # Nothing is known of the sampler behind the end of a rollout.
    known = trainer, np.where(mask, sampler, -np.inf), mask
    for level in importance.LEVELS:
        got = importance.truncated_weights(*known, cap=1.5, level=level)
        want = np.minimum(ratios(trainer, sampler, mask, level), 1.5)
        np.testing.assert_allclose(got, np.where(mask, want, 0), rtol=1e-5)
    for of in importance.MASKS[1:]:
        ratio = ratios(trainer, sampler, mask, of)
        for low, high in ((0.7, 1.3), (0.0, 1.3), (0.7, np.inf)):
            got = importance.kept(*known, of=of, low=low, high=high)
            np.testing.assert_array_equal(got, mask & (ratio >= low) & (ratio <= high))
        assert (mask & (ratio < 0.7)).any() and (mask & (ratio > 1.3)).any()
        # Sampler and trainer that agree lose nothing, however narrow the bounds are.
        np.testing.assert_array_equal(
            importance.kept(trainer, trainer, mask, of=of, low=1.0, high=1.0), mask
        )


@pytest.mark.parametrize("seed", range(3))
def test_the_gradient_of_a_corrected_loss_is_corrected_token_by_token(seed):
    trainer, sampler = logps(seed)
    rng = np.random.default_rng(seed)
    mask = np.arange(6) < rng.integers(1, 7, (3, 4, 1))
    advantage = rng.normal(0, 1, (3, 4)).astype(np.float32)
    weights = token_weights.token_mean(mask)
    corrected = weights * importance.truncated_weight(trainer, sampler, cap=2.0)

    def loss(logp):
        return (corrected * grpo.policy_loss(logp, trainer, advantage, mask)[0]).sum()

    gradient = jax.grad(loss)(trainer)
    # At the old policy the ratio is 1: the gradient is that of -w A logp.
    want = -advantage[..., None] * np.minimum(np.exp(trainer - sampler), 2.0) * mask / mask.sum()
    np.testing.assert_allclose(gradient, want, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("seed", range(3))
def test_mismatch_equals_numpy(seed):
    trainer, sampler = logps(seed)
    mask = np.arange(6) < np.array([1, 3, 6, 2])[None, :, None]
    mask = np.broadcast_to(mask, trainer.shape)
    hidden = np.where(mask, sampler, np.nan)
    weights = token_weights.token_mean(mask)
    values = importance.mismatch(trainer, hidden, mask)
    got = {name: (weights * value_BNT).sum() for name, value_BNT in values.items()}
    gap = (trainer - sampler)[mask].astype(np.float64)
    np.testing.assert_allclose(got["sampler_gap"], np.abs(gap).mean(), rtol=1e-5)
    np.testing.assert_allclose(got["sampler_kl"], (np.exp(gap) - 1 - gap).mean(), rtol=1e-4)
