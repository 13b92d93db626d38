"""Keys and values of a shared prompt, and of the completions that follow it.

The axes lie as the products of decoding read them, so that no step transposes a cache: keys
[K, tokens], values [tokens, K]. `*_L` is a leading axis of layers, or a tuple of L arrays: a loop
that reads a layer from an array of its own copies nothing.
"""

from collections.abc import Callable
from typing import Any

import flax.struct
import jax
from einops import rearrange

from speciarl_jax.runtime import activation_sharding


@flax.struct.dataclass
class PrefixCache:
    """Keys and values of a prompt; one copy serves all completions of a row."""

    k_LBGKP: Any  # rotated keys of every layer
    v_LBGPK: Any
    mask_BP: jax.Array  # bool, false at padding

    @classmethod
    def of(cls, k_LBPGK: jax.Array, v_LBPGK: jax.Array, mask_BP: jax.Array) -> "PrefixCache":
        """Makes a cache of the keys and values that the layers computed."""
        axes = (None, "batch", None, "kv_heads", None)
        k, v = activation_sharding.constrain((k_LBPGK, v_LBPGK), *axes)
        k, v = rearrange(k, "l b p g k -> l b g k p"), rearrange(v, "l b p g k -> l b g p k")
        return cls(k_LBGKP=k, v_LBGPK=v, mask_BP=mask_BP)

    def by_layer(self) -> "PrefixCache":
        """Returns the same with a tuple of layers."""
        return self.replace(k_LBGKP=tuple(self.k_LBGKP), v_LBGPK=tuple(self.v_LBGPK))

    def over_batch(self, function: Callable[[jax.Array, int], jax.Array]) -> "PrefixCache":
        """Returns the same after `function(x, axis)`; images lie along `axis` of `x`."""
        return PrefixCache(
            k_LBGKP=_over_batch(function, self.k_LBGKP),
            v_LBGPK=_over_batch(function, self.v_LBGPK),
            mask_BP=function(self.mask_BP, 0),
        )


@flax.struct.dataclass
class SuffixCache:
    """Keys and values of the completions' own tokens; column t holds token t."""

    k_LBNGKT: Any  # rotated keys of every layer
    v_LBNGTK: Any

    def over_batch(self, function: Callable[[jax.Array, int], jax.Array]) -> "SuffixCache":
        """Returns the same after `function(x, axis)`; images lie along `axis` of `x`."""
        return SuffixCache(
            k_LBNGKT=_over_batch(function, self.k_LBNGKT),
            v_LBNGTK=_over_batch(function, self.v_LBNGTK),
        )


def _over_batch(function: Callable[[jax.Array, int], jax.Array], x_L: Any) -> Any:
    if isinstance(x_L, tuple):
        return tuple(function(x, 0) for x in x_L)
    return function(x_L, 1)
