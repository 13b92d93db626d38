"""Keys and values of a shared prompt, and of the answers that follow it.

The axes lie as the products of decoding read them, so that no step transposes a cache: keys
[K, tokens], values [tokens, K]. `*_L` is a leading axis of layers, or a tuple of L arrays: a loop
that reads a layer of its own array copies nothing.
"""

from typing import Any

import flax.struct
import jax


@flax.struct.dataclass
class PrefixCache:
    """Keys and values of a prompt; one copy serves all of its answers.

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


@flax.struct.dataclass
class SuffixCache:
    """Keys and values of the answers' own tokens; column t holds token t.

    Attributes:
      k_LBNGKT: rotated keys of every layer.
      v_LBNGTK: values.
    """

    k_LBNGKT: Any
    v_LBNGTK: Any

    def take(self, index_BM: jax.Array) -> "SuffixCache":
        """Some answers of each prompt: `index_BM` numbers them along N."""
        take = jax.vmap(lambda x_N, index_M: x_N[index_M])
        if not isinstance(self.k_LBNGKT, tuple):
            take = jax.vmap(take, (0, None))
        return jax.tree.map(lambda x: take(x, index_BM), self)
