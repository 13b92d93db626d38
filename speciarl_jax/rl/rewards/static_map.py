"""A fixed reward for each category, whatever the rest of the group says."""

import jax
import jax.numpy as jnp

from speciarl_jax.verifiers.category import Category


def reward(
    category_BN: jax.Array,
    valid_BN: jax.Array,
    *,
    more_specific: float,
    specific: float,
    less_specific: float,
    generic: float,
    abstain: float,
    wrong: float,
    unparsed_reward: float = -1.0,
) -> jax.Array:
    """The static rewards that arXiv 2603.03197 compares its own with, float32 [B, N].

    Args:
      category_BN: as for `best_prediction.reward`.
      valid_BN: likewise.
      more_specific: the reward of an answer of that category.
      unparsed_reward: the reward of an answer that could not be parsed.
    """
    value = {
        Category.UNPARSED: unparsed_reward,
        Category.WRONG: wrong,
        Category.ABSTAIN: abstain,
        Category.GENERIC: generic,
        Category.LESS_SPECIFIC: less_specific,
        Category.SPECIFIC: specific,
        Category.MORE_SPECIFIC: more_specific,
    }
    table = jnp.array([value[c] for c in sorted(Category)], jnp.float32)
    reward_BN = table[jnp.asarray(category_BN) - min(Category)]
    return jnp.where(valid_BN, reward_BN, 0.0)
