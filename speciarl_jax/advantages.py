"""Group-relative advantages."""

import jax
import jax.numpy as jnp


def group_advantages(
    reward_BN: jax.Array,
    valid_BN: jax.Array,
    *,
    normalize_by_std: bool = True,
    epsilon: float = 1e-6,
) -> jax.Array:
    """How much better an answer was than the others about the same image.

    GRPO (arXiv 2402.03300, section 4.1): `(r - mean) / (std + epsilon)` with the sample standard
    deviation (ddof 1). Dr.GRPO (arXiv 2503.20783) leaves the division out.

    Args:
      reward_BN: float rewards.
      valid_BN: bool; an answer without a verdict gets 0 and counts in no mean.
      normalize_by_std: divide by the standard deviation of the group.
      epsilon: added to the standard deviation.

    Returns:
      float32 [B, N]. A group with fewer than two valid answers, or with equal rewards, gets 0.
    """
    # Sum rewards where they exist only: a NaN behind a False must not spread.
    reward_BN = jnp.where(valid_BN, reward_BN, 0.0).astype(jnp.float32)
    count_B1 = jnp.sum(valid_BN, axis=1, keepdims=True)
    mean_B1 = jnp.sum(reward_BN, axis=1, keepdims=True) / jnp.maximum(count_B1, 1)
    centred_BN = jnp.where(valid_BN, reward_BN - mean_B1, 0.0)
    # Equal rewards carry no signal; rounding of the mean must not be blown up by 1 / epsilon.
    low_B1 = jnp.min(jnp.where(valid_BN, reward_BN, jnp.inf), axis=1, keepdims=True)
    high_B1 = jnp.max(jnp.where(valid_BN, reward_BN, -jnp.inf), axis=1, keepdims=True)
    centred_BN = jnp.where(high_B1 > low_B1, centred_BN, 0.0)
    if not normalize_by_std:
        return centred_BN
    variance_B1 = jnp.sum(centred_BN**2, axis=1, keepdims=True) / jnp.maximum(count_B1 - 1, 1)
    return centred_BN / (jnp.sqrt(variance_B1) + epsilon)
