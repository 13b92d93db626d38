"""The Brier score of what the policy claims by the probability of a completion."""

import jax
import jax.numpy as jnp


def penalty(
    logp_BNT: jax.Array, mask_BNT: jax.Array, reward_BN: jax.Array, *, weight: float
) -> jax.Array:
    """`weight (p - r)**2`, to be taken from the reward; float32 [B, N] in [0, weight].

    r is whether the completion is rewarded, p its probability under the policy that sampled it. The
    term is that of RLCR (arXiv 2507.16806), where p is a number that the completion itself states.
    Here completions are names, and state none.

    Args:
      logp_BNT: float32 log-probabilities of the sampled tokens.
      mask_BNT: bool, the tokens of the completions; elsewhere log-probabilities are arbitrary.
      reward_BN: float32; a completion is rewarded if it is positive.
      weight: of the score.

    Raises:
      ValueError: the weight is negative.
    """
    if weight < 0:
        raise ValueError(
            f"config.reward.brier_weight is {weight}; the score is taken from the reward, so set "
            "it above 0, or to 0 to leave it out"
        )
    probability_BN = jnp.exp(jnp.sum(jnp.where(mask_BNT, logp_BNT, 0.0), axis=-1))
    return (weight * (probability_BN - (reward_BN > 0)) ** 2).astype(jnp.float32)
