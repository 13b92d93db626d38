"""The dynamic reward of SpeciaRL: the bar is the best answer of the group."""

import jax
import jax.numpy as jnp

from speciarl_jax.verifiers.category import Category

MODES = ("all", "single")


def required_category(category_BN: jax.Array, valid_BN: jax.Array) -> jax.Array:
    """The category an answer must reach to be rewarded, c* of arXiv 2603.03197, int32 [B, 1].

    The best category of the group, where more specific counts as specific. Of a group that is wrong
    throughout the bar is abstain, so nobody reaches it.

    Args:
      category_BN: int32 `Category` of each answer.
      valid_BN: bool, whether a verdict exists; answers without one do not set the bar.
    """
    best_B1 = jnp.max(jnp.where(valid_BN, category_BN, Category.UNPARSED), axis=1, keepdims=True)
    return jnp.clip(best_B1, Category.ABSTAIN, Category.SPECIFIC)


def reward(
    category_BN: jax.Array,
    valid_BN: jax.Array,
    *,
    mode: str = "all",
    unparsed_reward: float = -1.0,
) -> jax.Array:
    """1 for the answers that are as good as the best of their group, else 0; float32 [B, N].

    Args:
      category_BN: int32 `Category` of each of N answers about each of B images.
      valid_BN: bool, whether a verdict exists. Answers without one get 0 here; they must be left
        out of the update by the same mask (`advantages.group_advantages` does).
      mode: "all" rewards every answer that reaches the bar; "single" only the first of them.
      unparsed_reward: the reward of an answer that could not be parsed.

    Raises:
      ValueError: `mode` is unknown.
    """
    if mode not in MODES:
        raise ValueError(f"config.reward.options.mode is {mode!r}; choose one of {MODES}")
    reached_BN = valid_BN & (category_BN >= required_category(category_BN, valid_BN))
    if mode == "single":
        reached_BN = reached_BN & (jnp.cumsum(reached_BN, axis=1) == 1)
    unparsed_BN = valid_BN & (category_BN == Category.UNPARSED)
    return jnp.where(unparsed_BN, unparsed_reward, reached_BN).astype(jnp.float32)
