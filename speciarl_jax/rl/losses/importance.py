"""Corrects for the gap between sampler and trainer: two programs that never agree to the bit."""

import math

import jax
import jax.numpy as jnp

from speciarl_jax.rl.losses import kl

# Whose log-probabilities the ratio is taken against.
OLD_LOGPROBS = ("rollout", "recomputed")
# What an importance weight is computed of.
LEVELS = ("token", "sequence")
# What leaves the policy loss where sampler and trainer are too far apart.
MASKS = ("none", "token", "sequence", "geometric")


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


def sequence_log_ratio(
    trainer_logp_BNT: jax.Array, sampler_logp_BNT: jax.Array, mask_BNT: jax.Array
) -> jax.Array:
    """Sums `log p_trainer - log p_sampler` over the tokens of each rollout, float32 [B, N, 1]."""
    log_ratio_BNT = jnp.where(mask_BNT, trainer_logp_BNT - sampler_logp_BNT, 0.0)
    return jnp.sum(log_ratio_BNT, axis=-1, keepdims=True)


def truncated_weights(
    trainer_logp_BNT: jax.Array,
    sampler_logp_BNT: jax.Array,
    mask_BNT: jax.Array,
    *,
    cap: float,
    level: str = "token",
) -> jax.Array:
    """Computes `truncated_weight` of the tokens or the rollouts, float32 [B, N, T], 0 elsewhere.

    Args:
      trainer_logp_BNT: float32 log-probability of the tokens by the trainer, before the updates.
      sampler_logp_BNT: float32, the same by the sampler.
      mask_BNT: bool, the tokens that take part.
      cap: upper bound of the weight.
      level: "token"; or "sequence", the ratio of whole rollouts, which is unbiased but for the cap
        and has a larger variance.
    """
    if level == "sequence":
        ratio_BN1 = sequence_log_ratio(trainer_logp_BNT, sampler_logp_BNT, mask_BNT)
        weight_BNT = truncated_weight(ratio_BN1, jnp.zeros_like(ratio_BN1), cap=cap)
    else:
        weight_BNT = truncated_weight(trainer_logp_BNT, sampler_logp_BNT, cap=cap)
    return jnp.where(mask_BNT, weight_BNT, 0.0)


def kept(
    trainer_logp_BNT: jax.Array,
    sampler_logp_BNT: jax.Array,
    mask_BNT: jax.Array,
    *,
    of: str,
    low: float,
    high: float,
) -> jax.Array:
    """Selects the tokens whose ratio `p_trainer / p_sampler` lies in [low, high], bool [B, N, T].

    Args:
      trainer_logp_BNT: float32 log-probability of the tokens by the trainer, before the updates.
      sampler_logp_BNT: float32, the same by the sampler.
      mask_BNT: bool, the tokens that take part.
      of: "token", the ratio of each token (IcePop, arXiv 2510.18855); "sequence", of each rollout,
        the product over its tokens; or "geometric", the geometric mean over its tokens, which does
        not grow with length. The last two drop whole rollouts.
      low: least ratio; 0 for no lower bound.
      high: largest ratio.
    """
    if of == "token":
        log_ratio_BNT = trainer_logp_BNT - sampler_logp_BNT
    else:
        log_ratio_BNT = sequence_log_ratio(trainer_logp_BNT, sampler_logp_BNT, mask_BNT)
    if of == "geometric":
        log_ratio_BNT /= jnp.maximum(jnp.sum(mask_BNT, axis=-1, keepdims=True), 1)
    lowest = math.log(low) if low > 0 else -math.inf
    log_ratio_BNT = jax.lax.stop_gradient(log_ratio_BNT)
    return mask_BNT & (log_ratio_BNT >= lowest) & (log_ratio_BNT <= math.log(high))


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
