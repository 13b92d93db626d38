"""DeepStack (arXiv 2406.04334): parts of an image's features that decoder layers add.

They lie beside the embeddings of a prompt, in one array [B, P, E]: the first D values of E are the
embedding, each further D belong to the next layer, from the first one on. Text has zeros there.
"""

import jax
import jax.numpy as jnp
from einops import rearrange


def split(x_BPE: jax.Array, width: int) -> tuple[jax.Array, jax.Array | None]:
    """Returns the embeddings [B, P, D], and what layers add [layers, B, P, D] or None.

    Args:
      width: D.
    """
    if x_BPE.shape[-1] == width:
        return x_BPE, None
    return x_BPE[..., :width], rearrange(x_BPE[..., width:], "b p (l d) -> l b p d", d=width)


def add(x_BSD: jax.Array, added_LBPD: jax.Array, layer: jax.Array) -> jax.Array:
    """Adds the part of a layer at the first P tokens; behind the last layer that has one, zeros.

    Args:
      layer: int32 scalar, the layer that put out `x_BSD`.
    """
    count, _, prompt, _ = added_LBPD.shape
    own_BPD = jax.lax.dynamic_index_in_dim(
        added_LBPD, jnp.minimum(layer, count - 1), axis=0, keepdims=False
    )
    own_BPD = jnp.where(layer < count, own_BPD, 0)
    after = x_BSD.shape[1] - prompt
    return x_BSD + jnp.pad(own_BPD, [(0, 0), (0, after), (0, 0)]).astype(x_BSD.dtype)
