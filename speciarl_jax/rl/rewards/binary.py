"""Right or not: the reward of plain reinforcement fine-tuning."""

import jax

from speciarl_jax.rl.rewards import static_map


def reward(
    category_BN: jax.Array, valid_BN: jax.Array, *, unparsed_reward: float = -1.0
) -> jax.Array:
    """1 for specific and more specific answers, else 0 (RFT in arXiv 2603.03197); float32 [B, N].

    The arguments are those of `best_prediction.reward`.
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
