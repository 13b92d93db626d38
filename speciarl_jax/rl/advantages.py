"""Group-relative advantages."""

import jax
import jax.numpy as jnp

BASELINES = ("mean", "leave_one_out")
# What the standard deviation that divides advantages is taken over.
STD_OVER = ("group", "batch")


def group_advantages(
    reward_BN: jax.Array,
    valid_BN: jax.Array,
    *,
    baseline: str = "mean",
    normalize_by_std: bool = True,
    std_over: str = "group",
    epsilon: float = 1e-6,
) -> jax.Array:
    """How much better an answer was than the others about the same image.

    GRPO (arXiv 2402.03300, section 4.1): `(r - mean) / (std + epsilon)` with the sample standard
    deviation (ddof 1). Dr.GRPO (arXiv 2503.20783) leaves the division out. RLOO (arXiv 2402.14740)
    compares an answer with the mean of the others alone, which is `n / (n - 1)` times as much.
    REINFORCE++ with baseline (arXiv 2501.03262) divides by the standard deviation of the centred
    rewards of the whole batch.

    Args:
      reward_BN: float rewards.
      valid_BN: bool; an answer without a verdict gets 0 and counts in no mean.
      baseline: "mean" of the group, or "leave_one_out", the mean of the other answers.
      normalize_by_std: divide by a standard deviation (ddof 1).
      std_over: "group", its rewards; or "batch", the differences from the baseline of all valid
        answers of the batch, also of groups without signal. Across devices it is one batch.
      epsilon: added to the standard deviation.

    Returns:
      float32 [B, N]. A group with fewer than two valid answers, or with equal rewards, gets 0.

    Raises:
      ValueError: `baseline` or `std_over` is unknown.
    """
    for key, value, choices in (
        ("baseline", baseline, BASELINES),
        ("std_over", std_over, STD_OVER),
    ):
        if value not in choices:
            raise ValueError(
                f"config.advantage.{key} {value!r} is unknown; choose one of {choices}"
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
    if normalize_by_std and std_over == "batch":
        # Their mean over the batch is 0, as it is over every group.
        variance = jnp.sum(advantage_BN**2) / jnp.maximum(jnp.sum(valid_BN) - 1, 1)
        advantage_BN = advantage_BN / (jnp.sqrt(variance) + epsilon)
    elif normalize_by_std:
        variance_B1 = jnp.sum(centred_BN**2, axis=1, keepdims=True) / others_B1
        advantage_BN = advantage_BN / (jnp.sqrt(variance_B1) + epsilon)
    return advantage_BN


def has_signal(reward_BN: jax.Array, valid_BN: jax.Array) -> jax.Array:
    """bool [B]: the rewards of the group's valid answers differ, so there is something to learn."""
    low_B = jnp.min(jnp.where(valid_BN, reward_BN, jnp.inf), axis=1)
    high_B = jnp.max(jnp.where(valid_BN, reward_BN, -jnp.inf), axis=1)
    return high_B > low_B
