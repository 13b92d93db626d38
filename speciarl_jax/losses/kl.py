"""Estimators of the divergence from the reference policy, a token at a time."""

import jax
import jax.numpy as jnp


def k3(logp: jax.Array, reference_logp: jax.Array, *, clamp: float = 10.0) -> jax.Array:
    """The k3 estimator of KL(policy || reference), never negative.

    `exp(ref - logp) - (ref - logp) - 1` (Schulman, "Approximating KL divergence", 2020), each token
    clamped to +-`clamp` and its log-ratio to +-20 so that one token cannot overflow the sum.

    Args:
      logp: log-probability of the sampled tokens under the policy, any shape.
      reference_logp: the same under the reference policy; no gradient flows through it.
      clamp: bound of a token's estimate, in nats.

    Returns:
      float32, same shape.
    """
    log_ratio = jnp.clip(jax.lax.stop_gradient(reference_logp) - logp, -20.0, 20.0)
    return jnp.clip(jnp.expm1(log_ratio) - log_ratio, -clamp, clamp).astype(jnp.float32)
