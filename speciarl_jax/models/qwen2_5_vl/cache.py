"""Keys and values of a shared prompt, and of the answers that follow it.

The axes lie as the products of decoding read them, so that no step transposes a cache: keys
[K, tokens], values [tokens, K]. `*_L` is a leading axis of layers, or a tuple of L arrays: a loop
that reads a layer of its own array copies nothing.
"""

from collections.abc import Callable
from typing import Any

import flax.struct
import jax


@flax.struct.dataclass
class PrefixCache:
    """Keys and values of a prompt; one copy serves all answers of a row.

    Attributes:
      k_LBGKP: rotated keys of every layer.
      v_LBGPK: values.
      mask_BP: bool, false at padding.
    """

    k_LBGKP: Any
    v_LBGPK: Any
    mask_BP: jax.Array

    def by_layer(self) -> "PrefixCache":
        """The same with a tuple of layers."""
        return self.replace(k_LBGKP=tuple(self.k_LBGKP), v_LBGPK=tuple(self.v_LBGPK))

    def over_batch(self, function: Callable[[jax.Array, int], jax.Array]) -> "PrefixCache":
        """The same after `function(x, axis)`; images lie along `axis` of `x`."""
        return PrefixCache(
            k_LBGKP=_over_batch(function, self.k_LBGKP),
            v_LBGPK=_over_batch(function, self.v_LBGPK),
            mask_BP=function(self.mask_BP, 0),
        )


@flax.struct.dataclass
class SuffixCache:
    """Keys and values of the answers' own tokens; column t holds token t.

    Attributes:
      k_LBNGKT: rotated keys of every layer.
      v_LBNGTK: values.
    """

    k_LBNGKT: Any
    v_LBNGTK: Any

    def over_batch(self, function: Callable[[jax.Array, int], jax.Array]) -> "SuffixCache":
        """The same after `function(x, axis)`; images lie along `axis` of `x`, answers behind."""
        return SuffixCache(
            k_LBNGKT=_over_batch(function, self.k_LBNGKT),
            v_LBNGTK=_over_batch(function, self.v_LBNGTK),
        )


def _over_batch(function: Callable[[jax.Array, int], jax.Array], x_L: Any) -> Any:
    if isinstance(x_L, tuple):
        return tuple(function(x, 0) for x in x_L)
    return function(x_L, 1)
