"""Answers cut to the longest of them, in a few widths, so that less padding is run."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from speciarl_jax.runtime import activation_sharding


def sizes(length: int, count: int) -> list[int]:
    """At most `count` widths, ascending: `length`, half of it, a quarter, and so on."""
    return sorted({-(-length // 2**i) for i in range(count)})


def by_length(mask_BNT: jax.Array, parts: int) -> jax.Array:
    """Puts images whose longest answers are about as long into one part of `split_strided`.

    Otherwise one long answer in every part would make all of them wide. Images stay on their
    device, and every part has as many of each device as before.

    Args:
      mask_BNT: bool, true at the tokens of the answers.
      parts: that the images will be cut into, every `parts`-th into one.

    Returns:
      int32 [S, B / S] for `slot_compaction.take_images`: the order within each of the S shares of
      the batch that devices hold.
    """
    longest_B = jnp.max(jnp.sum(mask_BNT, axis=-1), axis=-1)
    shares = activation_sharding.parts(len(longest_B) // parts, "batch")
    order_SR = jnp.argsort(longest_B.reshape(shares, -1), axis=1, stable=True)
    # Neighbours in this order go `parts` apart.
    return jnp.swapaxes(order_SR.reshape(shares, parts, -1), 1, 2).reshape(shares, -1)


def at_narrowest(
    function: Callable[[Any], Any], arrays: Any, mask_BNT: jax.Array, count: int
) -> Any:
    """`function(arrays)` with arrays [..., T] cut to the narrowest width that holds all answers.

    Args:
      function: its result must not depend on padding, nor its shape on T. It is compiled for each
        width, and run for one. To be differentiated inside, not from outside, where the residuals
        of all widths would be kept.
      arrays: pytree of arrays whose last axis is T.
      mask_BNT: bool, true at the tokens of the answers.
      count: of widths; 1 cuts nothing.
    """
    widths = sizes(mask_BNT.shape[-1], count)
    if len(widths) == 1:
        return function(arrays)
    longest = jnp.max(jnp.sum(mask_BNT, axis=-1))
    which = jnp.sum(longest > jnp.array(widths[:-1]))

    def at(width):
        return lambda arrays: function(jax.tree.map(lambda x: x[..., :width], arrays))

    return jax.lax.switch(which, [at(width) for width in widths], arrays)
