"""Right or not: the reward of plain reinforcement fine-tuning."""

import jax

from speciarl_jax.rl.rewards import static_map


def reward(
    category_BN: jax.Array, valid_BN: jax.Array, *, unparsed_reward: float = -1.0
) -> jax.Array:
    """1 for specific and more specific answers, 0 for the others (RFT in arXiv 2603.03197).

    Args:
      category_BN: int32 `Category` of each of N answers about each of B images.
      valid_BN: bool, whether a verdict exists. Answers without one get 0 here; they must be left
        out of the update by the same mask.
      unparsed_reward: the reward of an answer that could not be parsed.

    Returns:
      float32 [B, N].
    """
    return static_map.reward(
        category_BN,
        valid_BN,
        more_specific=1.0,
        specific=1.0,
        less_specific=0.0,
        generic=0.0,
        abstain=0.0,
        wrong=0.0,
        unparsed_reward=unparsed_reward,
    )
