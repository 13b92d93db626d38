"""Corrects for the gap between sampler and trainer: two programs that never agree to the bit."""

import jax
import jax.numpy as jnp

from speciarl_jax.rl.losses import kl

# Whose log-probabilities the ratio is taken against.
OLD_LOGPROBS = ("rollout", "recomputed")


def truncated_weight(
    trainer_logp: jax.Array, sampler_logp: jax.Array, *, cap: float, log_ratio_clamp: float = 20.0
) -> jax.Array:
    """Computes `min(p_trainer / p_sampler, cap)` of each token, float32, without a gradient.

    Truncated importance sampling (Ionides, 2008; for sampler and trainer, Yao et al., "Your
    efficient RL framework secretly brings you off-policy RL training", 2025). It multiplies the
    policy loss of a token.

    Args:
      trainer_logp: float32 log-probability of the tokens by the trainer, before the updates.
      sampler_logp: float32, the same by the sampler.
      log_ratio_clamp: the log-ratio is clamped to +-this before it is exponentiated.
    """
    log_ratio = jnp.clip(trainer_logp - sampler_logp, -log_ratio_clamp, log_ratio_clamp)
    return jax.lax.stop_gradient(jnp.minimum(jnp.exp(log_ratio), cap))


def mismatch(
    trainer_logp: jax.Array, sampler_logp: jax.Array, mask: jax.Array
) -> dict[str, jax.Array]:
    """Measures how far sampler and trainer disagree about the same tokens under the same weights.

    Args:
      trainer_logp: float32 log-probability of the tokens by the trainer.
      sampler_logp: float32, the same by the sampler.
      mask: bool, the tokens that take part.

    Returns:
      Values of each token: `sampler_gap`, |difference| of the log-probabilities, and `sampler_kl`,
      the k3 estimate of KL(sampler || trainer), in nats.
    """
    trainer_logp = jax.lax.stop_gradient(jnp.where(mask, trainer_logp, 0.0))
    sampler_logp = jnp.where(mask, sampler_logp, 0.0)
    return {
        "sampler_gap": jnp.abs(trainer_logp - sampler_logp),
        "sampler_kl": kl.k3(sampler_logp, trainer_logp),
    }
