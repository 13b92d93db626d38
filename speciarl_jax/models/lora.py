"""Low-rank adapters (LoRA, arXiv 2106.09685) on stacked linear layers."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import qwix
from flax import nnx

from speciarl_jax.models import int8


def adapters(
    layers: int, in_features: int, out_features: int, rank: int, axes: tuple[str, str], key
) -> tuple[nnx.LoRAParam, nnx.LoRAParam]:
    """The pair A [layers, in, rank], B [layers, rank, out] of one linear layer, float32.

    A is uniform in +-1/sqrt(in), as PEFT initialises it, and B zero: fresh adapters change nothing.

    Args:
      layers: how many layers are stacked.
      in_features: of the linear layer.
      out_features: of the linear layer.
      rank: r.
      axes: logical axes of the linear layer's input and output.
      key: for A.
    """
    bound = 1.0 / np.sqrt(in_features)
    a = jax.random.uniform(key, (layers, in_features, rank), jnp.float32, -bound, bound)
    b = jnp.zeros((layers, rank, out_features), jnp.float32)
    return (
        nnx.LoRAParam(a, axes=("layers", axes[0], "lora")),
        nnx.LoRAParam(b, axes=("layers", "lora", axes[1])),
    )


def linear(
    x: jax.Array,
    kernel: jax.Array | qwix.QArray,
    bias: jax.Array | None,
    adapter: tuple[jax.Array, jax.Array] | None,
    scale: float,
    dtype: Any,
) -> jax.Array:
    """`x W + b + scale (x A) B` in `dtype`; without an adapter the last term is not computed.

    Args:
      x: [..., in].
      kernel: [in, out], of floats or int8.
      bias: [out], or None.
      adapter: A [in, r] and B [r, out], or None.
      scale: alpha / r.
      dtype: of the products.
    """
    y = int8.matmul(x, kernel, dtype)
    if bias is not None:
        y = y + bias.astype(dtype)
    if adapter is not None:
        a, b = adapter
        y = y + (x @ a.astype(dtype)) @ b.astype(dtype) * scale
    return y


def merge(
    kernel: jax.Array | qwix.QArray, adapter: tuple[jax.Array, jax.Array], scale: float
) -> jax.Array:
    """`W + scale A B` of stacked layers, added in float32 and cast back to the kernel's dtype.

    Raises:
      ValueError: the kernel is int8, whose steps would swallow what the adapter learned.
    """
    int8.check_exportable(kernel)
    a, b = adapter
    delta = scale * jnp.einsum("lir,lro->lio", a, b, precision="highest")
    return (kernel.astype(jnp.float32) + delta).astype(kernel.dtype)
