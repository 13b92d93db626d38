"""Rank-aware credit: a better completion of a group shall be more probable than a worse one.

After RAC (arXiv 2605.16999), which asks for more confidence in the better rollouts of a group. The
confidence in a completion is the mean log-probability of its tokens, and the loss of a pair is the
logistic loss of Bradley and Terry (1952).
"""

import jax
import jax.numpy as jnp


def pairs(advantage_BN: jax.Array, valid_BN: jax.Array) -> jax.Array:
    """Says which rollouts are better than which; bool [B, N, N], the better along the first N.

    Args:
      advantage_BN: float32; within a group they are ordered as the rewards are.
      valid_BN: bool, rollouts that take part in the update.
    """
    better_BNN = advantage_BN[:, :, None] > advantage_BN[:, None, :]
    return better_BNN & valid_BN[:, :, None] & valid_BN[:, None, :]


def num_ranked(advantage_BN: jax.Array, valid_BN: jax.Array) -> jax.Array:
    """Counts the groups that have a pair; float32, at least 1. Arguments as for `pairs`."""
    ranked_B = jnp.any(pairs(advantage_BN, valid_BN), axis=(1, 2))
    return jnp.maximum(jnp.sum(ranked_B, dtype=jnp.float32), 1.0)


def loss(
    logp_BNT: jax.Array, mask_BNT: jax.Array, advantage_BN: jax.Array, valid_BN: jax.Array
) -> jax.Array:
    """Computes `log(1 + exp(worse - better))` of confidences, averaged over each group's pairs.

    Args:
      logp_BNT: float32 log-probabilities of the sampled tokens under the policy, differentiable.
      mask_BNT: bool, the tokens of the completions; elsewhere log-probabilities are arbitrary.
      advantage_BN: as for `pairs`.
      valid_BN: likewise.

    Returns:
      float32 [B], nats; 0 for a group without a pair.
    """
    count_BN = jnp.maximum(jnp.sum(mask_BNT, axis=-1), 1)
    confidence_BN = jnp.sum(jnp.where(mask_BNT, logp_BNT, 0.0), axis=-1) / count_BN
    ahead_BNN = confidence_BN[:, :, None] - confidence_BN[:, None, :]
    pairs_BNN = pairs(advantage_BN, valid_BN)
    total_B = jnp.sum(jnp.where(pairs_BNN, jax.nn.softplus(-ahead_BNN), 0.0), axis=(1, 2))
    return total_B / jnp.maximum(jnp.sum(pairs_BNN, axis=(1, 2)), 1)
