"""The price of answers that come near the limit of their length."""

import jax
import jax.numpy as jnp


def penalty(length_BN: jax.Array, *, max_tokens: int, buffer: int, weight: float) -> jax.Array:
    """DAPO's soft overlong punishment (arXiv 2503.14476, equation 13), to be taken from the reward.

    0 up to `max_tokens - buffer` tokens, then rising linearly to `weight` at `max_tokens`. With a
    buffer of 0 only answers that fill `max_tokens` pay.

    Args:
      length_BN: tokens of each answer, EOS included.
      max_tokens: the longest answer there can be.
      buffer: tokens over which the penalty rises.
      weight: of the longest answer.

    Returns:
      float32 [B, N], in [0, weight].

    Raises:
      ValueError: the buffer is not within the answer, or the weight is negative.
    """
    if not 0 <= buffer <= max_tokens or weight < 0:
        raise ValueError(
            f"config.reward.overlong_buffer is {buffer} and overlong_penalty {weight}; the buffer "
            f"must lie between 0 and config.rollout.max_tokens, {max_tokens}, and the penalty must "
            "not be negative"
        )
    if buffer == 0:
        return weight * (length_BN >= max_tokens).astype(jnp.float32)
    over_BN = (length_BN - (max_tokens - buffer)) / buffer
    return (weight * jnp.clip(over_BN, 0.0, 1.0)).astype(jnp.float32)
