"""Sampler and trainer are two programs with one set of weights, and never agree to the last bit."""

import jax
import jax.numpy as jnp

from speciarl_jax.rl.losses import kl

# Whose log-probabilities the ratio is taken against.
OLD_LOGPROBS = ("rollout", "recomputed")


def truncated_weight(
    trainer_logp: jax.Array, sampler_logp: jax.Array, *, cap: float, log_ratio_clamp: float = 20.0
) -> jax.Array:
    """`min(p_trainer / p_sampler, cap)` of each token, without a gradient.

    Truncated importance sampling (Ionides, 2008; for sampler and trainer, Yao et al., "Your
    efficient RL framework secretly brings you off-policy RL training", 2025). It multiplies the
    policy loss of a token.

    Args:
      trainer_logp: log-probability of the tokens by the trainer, before the step's updates.
      sampler_logp: the same by the sampler.
      cap: upper bound of the weight.
      log_ratio_clamp: the log-ratio is clamped to +-this before it is exponentiated.

    Returns:
      float32, same shape.
    """
    log_ratio = jnp.clip(trainer_logp - sampler_logp, -log_ratio_clamp, log_ratio_clamp)
    return jax.lax.stop_gradient(jnp.minimum(jnp.exp(log_ratio), cap))


def mismatch(
    trainer_logp: jax.Array, sampler_logp: jax.Array, weight: jax.Array
) -> dict[str, jax.Array]:
    """How far sampler and trainer disagree about the same tokens under the same weights.

    Args:
      trainer_logp: log-probability of the tokens by the trainer.
      sampler_logp: the same by the sampler.
      weight: of each token, zero outside the answers.

    Returns:
      Weighted sums: `sampler_gap`, the mean |difference| of the log-probabilities, and
      `sampler_kl`, the k3 estimate of KL(sampler || trainer), in nats.
    """
    taken = weight > 0
    trainer_logp = jax.lax.stop_gradient(jnp.where(taken, trainer_logp, 0.0))
    sampler_logp = jnp.where(taken, sampler_logp, 0.0)
    return {
        "sampler_gap": jnp.sum(weight * jnp.abs(trainer_logp - sampler_logp)),
        "sampler_kl": jnp.sum(weight * kl.k3(sampler_logp, trainer_logp)),
    }
