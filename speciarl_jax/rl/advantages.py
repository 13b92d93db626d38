"""Group-relative advantages."""

import jax
import jax.numpy as jnp

BASELINES = ("mean", "leave_one_out")


def group_advantages(
    reward_BN: jax.Array,
    valid_BN: jax.Array,
    *,
    baseline: str = "mean",
    normalize_by_std: bool = True,
    epsilon: float = 1e-6,
) -> jax.Array:
    """How much better an answer was than the others about the same image.

    GRPO (arXiv 2402.03300, section 4.1): `(r - mean) / (std + epsilon)` with the sample standard
    deviation (ddof 1). Dr.GRPO (arXiv 2503.20783) leaves the division out. RLOO (arXiv 2402.14740)
    compares an answer with the mean of the others alone, which is `n / (n - 1)` times as much.

    Args:
      reward_BN: float rewards.
      valid_BN: bool; an answer without a verdict gets 0 and counts in no mean.
      baseline: "mean" of the group, or "leave_one_out", the mean of the other answers.
      normalize_by_std: divide by the standard deviation of the group.
      epsilon: added to the standard deviation.

    Returns:
      float32 [B, N]. A group with fewer than two valid answers, or with equal rewards, gets 0.

    Raises:
      ValueError: `baseline` is unknown.
    """
    if baseline not in BASELINES:
        raise ValueError(
            f"config.advantage.baseline {baseline!r} is unknown; choose one of {BASELINES}"
        )
    # Sum rewards where they exist only: a NaN behind a False must not spread.
    reward_BN = jnp.where(valid_BN, reward_BN, 0.0).astype(jnp.float32)
    count_B1 = jnp.sum(valid_BN, axis=1, keepdims=True)
    mean_B1 = jnp.sum(reward_BN, axis=1, keepdims=True) / jnp.maximum(count_B1, 1)
    centred_BN = jnp.where(valid_BN, reward_BN - mean_B1, 0.0)
    # Equal rewards carry no signal; rounding of the mean must not be blown up by 1 / epsilon.
    centred_BN = jnp.where(has_signal(reward_BN, valid_BN)[:, None], centred_BN, 0.0)
    others_B1 = jnp.maximum(count_B1 - 1, 1)
    advantage_BN = centred_BN
    if baseline == "leave_one_out":
        advantage_BN = centred_BN * (count_B1 / others_B1)
    if normalize_by_std:
        variance_B1 = jnp.sum(centred_BN**2, axis=1, keepdims=True) / others_B1
        advantage_BN = advantage_BN / (jnp.sqrt(variance_B1) + epsilon)
    return advantage_BN


def has_signal(reward_BN: jax.Array, valid_BN: jax.Array) -> jax.Array:
    """bool [B]: the rewards of the group's valid answers differ, so there is something to learn."""
    low_B = jnp.min(jnp.where(valid_BN, reward_BN, jnp.inf), axis=1)
    high_B = jnp.max(jnp.where(valid_BN, reward_BN, -jnp.inf), axis=1)
    return high_B > low_B
