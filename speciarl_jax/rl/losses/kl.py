"""Estimators of KL(policy || reference) from sampled tokens, one token at a time.

Schulman, "Approximating KL divergence", 2020 (http://joschu.net/blog/kl-approx.html). As values
all three estimate the divergence. As losses they differ, since the tokens were drawn from the
policy and the gradient does not see that: k1 has no expected gradient at all, k2 that of the
divergence, k3 that of KL(reference || policy). So k1 belongs into the reward.
"""

import jax
import jax.numpy as jnp

ESTIMATORS = ("k1", "k2", "k3")


def k1(logp: jax.Array, reference_logp: jax.Array, *, clamp: float = 10.0) -> jax.Array:
    """`logp - ref`, float32: unbiased, of either sign.

    Args:
      logp: log-probability of the sampled tokens under the policy, any shape.
      reference_logp: the same under the reference policy; no gradient flows through it.
      clamp: bound of a token's estimate, in nats.
    """
    return jnp.clip(-_log_ratio(logp, reference_logp), -clamp, clamp)


def k2(logp: jax.Array, reference_logp: jax.Array, *, clamp: float = 10.0) -> jax.Array:
    """`(logp - ref)**2 / 2`: biased where the two are far apart, never negative. As for `k1`."""
    return jnp.minimum(0.5 * _log_ratio(logp, reference_logp) ** 2, clamp)


def k3(logp: jax.Array, reference_logp: jax.Array, *, clamp: float = 10.0) -> jax.Array:
    """`exp(ref - logp) - (ref - logp) - 1`: unbiased, never negative. As for `k1`."""
    log_ratio = _log_ratio(logp, reference_logp)
    return jnp.clip(jnp.expm1(log_ratio) - log_ratio, -clamp, clamp)


def schedule(step: jax.Array, *, warmup_steps: int, decay_steps: int) -> jax.Array:
    """Computes the factor on the coefficient of the KL in an update, float32 in [0, 1].

    It rises linearly to 1 over `warmup_steps` updates and falls linearly from there to 0.

    Args:
      step: int32, number of finished updates.
      warmup_steps: the update of this number is the first of factor 1; 0 for no warm-up.
      decay_steps: finished updates after which the factor is 0; 0 for no decay.
    """
    factor = jnp.ones((), jnp.float32)
    if warmup_steps:
        factor = jnp.minimum((step + 1) / warmup_steps, 1.0)
    if decay_steps:
        left = (decay_steps - step) / (decay_steps - warmup_steps)
        factor *= jnp.clip(left, 0.0, 1.0)
    return factor.astype(jnp.float32)


def _log_ratio(logp: jax.Array, reference_logp: jax.Array) -> jax.Array:
    """`ref - logp`, clamped to +-20 so that one token cannot overflow the sum."""
    log_ratio = jax.lax.stop_gradient(reference_logp) - logp
    return jnp.clip(log_ratio, -20.0, 20.0).astype(jnp.float32)
