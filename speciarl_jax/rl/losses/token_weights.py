"""Weights that turn per-token losses into one number: `loss = sum(weights * token_loss)`.

The weights hold the whole denominator. They are computed once over the complete batch and then cut
into micro-batches, so the sum of the micro-batches' gradients is the batch's gradient exactly.
"""

import jax
import jax.numpy as jnp


def token_mean(mask_BNT: jax.Array) -> jax.Array:
    """Every answer token of the batch counts the same (DAPO, arXiv 2503.14476, equation 8).

    Args:
      mask_BNT: bool, the answer tokens that take part, EOS included.

    Returns:
      float32 [B, N, T], sums to 1, or to 0 where no token takes part.
    """
    mask_BNT = mask_BNT.astype(jnp.float32)
    return mask_BNT / jnp.maximum(jnp.sum(mask_BNT), 1.0)


def sequence_mean(mask_BNT: jax.Array) -> jax.Array:
    """Every answer counts the same, its tokens share it (GRPO, arXiv 2402.03300, equation 3).

    Argument and result as for `token_mean`.
    """
    mask_BNT = mask_BNT.astype(jnp.float32)
    length_BN1 = jnp.sum(mask_BNT, axis=-1, keepdims=True)
    answers = jnp.sum(length_BN1 > 0)
    return mask_BNT / jnp.maximum(length_BN1, 1.0) / jnp.maximum(answers, 1)


def constant(mask_BNT: jax.Array, *, length: int) -> jax.Array:
    """Every token of every answer weighs the same in every batch: an answer's sum over a constant,
    averaged over the answers (Dr.GRPO, arXiv 2503.20783, section 3.2).

    Args:
      mask_BNT: bool, the answer tokens that take part, EOS included.
      length: the constant, tokens; the longest answer there can be.

    Returns:
      float32 [B, N, T], sums to the mean length of the answers over `length`.

    Raises:
      ValueError: `length` is below 1.
    """
    if length < 1:
        raise ValueError(
            f"config.loss.token_weights_options.length is {length}; it divides the loss, so set it "
            "to config.rollout.max_tokens, say"
        )
    mask_BNT = mask_BNT.astype(jnp.float32)
    answers = jnp.sum(jnp.any(mask_BNT > 0, axis=-1))
    return mask_BNT / length / jnp.maximum(answers, 1)
