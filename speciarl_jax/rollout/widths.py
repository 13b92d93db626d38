"""Answers cut to the longest of them, in a few widths, so that less padding is run."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp


def sizes(length: int, count: int) -> list[int]:
    """At most `count` widths, ascending: `length`, half of it, a quarter, and so on."""
    return sorted({-(-length // 2**i) for i in range(count)})


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
