"""The log-ratio between the policy and the policy before the update, which surrogates share."""

import jax
import jax.numpy as jnp


def log_ratio(
    logp_BNT: jax.Array, old_logp_BNT: jax.Array, mask_BNT: jax.Array, *, clamp: float
) -> jax.Array:
    """Computes `logp - old_logp`, clamped to +-`clamp`; float32 [B, N, T], 0 outside of the mask.

    Args:
      logp_BNT: float32 log-probabilities under the policy, differentiable.
      old_logp_BNT: float32, the same before the update; no gradient flows through it.
      mask_BNT: bool, the tokens that take part; elsewhere log-probabilities are arbitrary.
      clamp: bound, so that the exponential stays finite.
    """
    log_ratio_BNT = jnp.where(mask_BNT, logp_BNT - jax.lax.stop_gradient(old_logp_BNT), 0.0)
    return jnp.clip(log_ratio_BNT, -clamp, clamp)
