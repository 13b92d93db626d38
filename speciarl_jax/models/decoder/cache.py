"""Keys and values of a shared prompt, and of the completions that follow it.

The axes lie as the products of decoding read them, so that no step transposes a cache: keys
[K, tokens], values [tokens, K]. `*_L` is a leading axis of layers, or a tuple of L arrays: a loop
that reads a layer from an array of its own copies nothing. An array may be in int8
(`int8.quantize`), with a scale for each token and head.
"""

import operator
from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import qwix
from einops import rearrange

from speciarl_jax.models import int8
from speciarl_jax.runtime import activation_sharding

# What `config.rollout.kv_cache` may be: the dtype of the products, or int8.
KINDS = ("dtype", "int8")
_KEYS, _VALUES = -2, -1  # the axis K of either


def check_kind(kind: str) -> None:
    """Refuses what is none of `KINDS` (ValueError)."""
    if kind not in KINDS:
        raise ValueError(f"config.rollout.kv_cache is {kind!r}; choose one of {KINDS}")


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
        return self.replace(k_LBGKP=_layers(self.k_LBGKP), v_LBGPK=_layers(self.v_LBGPK))

    def in_int8(self) -> "PrefixCache":
        """Returns the same in int8."""
        return self.replace(
            k_LBGKP=int8.quantize(self.k_LBGKP, _KEYS),
            v_LBGPK=int8.quantize(self.v_LBGPK, _VALUES),
        )

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

    @classmethod
    def empty(
        cls, layers: int, rows: tuple[int, int, int], length: int, width: int, *, dtype, kind: str
    ) -> "SuffixCache":
        """Makes a cache for completions of `length` tokens.

        Args:
          layers: L; 0 for one layer without that axis.
          rows: B, N, G.
          width: K.
          dtype: of keys and values that are not in int8.
          kind: one of `KINDS`.

        Raises:
          ValueError: an unknown kind.
        """
        check_kind(kind)
        lead = (layers,) if layers else ()
        axes = (None,) * len(lead) + ("batch", None, "kv_heads", None, None)

        def zeros(*shape, dtype=dtype):
            x = jnp.zeros((*lead, *rows, *shape), dtype)
            return activation_sharding.constrain(x, *axes)

        if kind == "dtype":
            return cls(k_LBNGKT=zeros(width, length), v_LBNGTK=zeros(length, width))
        k, v = (width, length), (length, width)
        k_scale, v_scale = (1, length), (length, 1)
        return cls(
            k_LBNGKT=qwix.QArray(zeros(*k, dtype=jnp.int8), zeros(*k_scale, dtype=jnp.float32)),
            v_LBNGTK=qwix.QArray(zeros(*v, dtype=jnp.int8), zeros(*v_scale, dtype=jnp.float32)),
        )

    def over_batch(self, function: Callable[[jax.Array, int], jax.Array]) -> "SuffixCache":
        """Returns the same after `function(x, axis)`; images lie along `axis` of `x`."""
        return SuffixCache(
            k_LBNGKT=_over_batch(function, self.k_LBNGKT),
            v_LBNGTK=_over_batch(function, self.v_LBNGTK),
        )


def write(k_BNGKT: Any, v_BNGTK: Any, k_BNGK: jax.Array, v_BNGK: jax.Array, step, layer=None):
    """Writes a token's keys and values into column `step`, in place; the caches are never copied.

    Args:
      k_BNGKT: keys of `SuffixCache`, with a leading axis of layers where `layer` is given.
      v_BNGTK: its values.
      step: int32 scalar.
      layer: int32 scalar, or None.

    Returns:
      Both caches.
    """

    def put(cache, new, tokens):
        if isinstance(cache, qwix.QArray):
            new = int8.quantize(new, -1)

        def one(cache, new):
            new, begin = jnp.expand_dims(new, tokens), [0] * cache.ndim
            begin[tokens] = step
            if layer is not None:
                new, begin[0] = new[None], layer
            return jax.lax.dynamic_update_slice(cache, new, begin)

        return jax.tree.map(one, cache, new)

    return put(k_BNGKT, k_BNGK, -1), put(v_BNGTK, v_BNGK, -2)


def _layers(x_L: Any) -> tuple[Any, ...]:
    """Returns each layer of stacked ones."""
    return tuple(jax.tree.map(operator.itemgetter(i), x_L) for i in range(x_L.shape[0]))


def _over_batch(function: Callable[[jax.Array, int], jax.Array], x_L: Any) -> Any:
    axis = 0 if isinstance(x_L, tuple) else 1
    return jax.tree.map(lambda x: function(x, axis), x_L)
