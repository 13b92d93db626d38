"""The negative log-likelihood of given answers: supervised training."""

import jax
import jax.numpy as jnp


def policy_loss(
    logp_BNT: jax.Array,
    old_logp_BNT: jax.Array,
    advantage_BN: jax.Array,
    weight_BNT: jax.Array,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """`-A logp` summed with the weights; with advantages of 1, cross-entropy in nats.

    Args:
      logp_BNT: log-probabilities of the given tokens under the policy, differentiable.
      old_logp_BNT: not read.
      advantage_BN: weight of a whole answer.
      weight_BNT: float32 weight of each token, zero outside the answers.

    Returns:
      The loss (float32 scalar) and no metrics.
    """
    del old_logp_BNT
    logp_BNT = jnp.where(weight_BNT > 0, logp_BNT, 0.0)
    return -jnp.sum(weight_BNT * jax.lax.stop_gradient(advantage_BN)[..., None] * logp_BNT), {}
