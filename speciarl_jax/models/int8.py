"""Weights, keys and values in int8 with scales, as `qwix` makes and reads them.

Half the bytes of bfloat16, for what is never trained: products, adapters and gradients stay in
floating point.
"""

from typing import Any

import jax
import jax.numpy as jnp
import qwix


def quantize(array: jax.Array, axis: int = -2) -> qwix.QArray:
    """Rounds an array to the nearest of 256 steps; the middle one is exactly 0.

    Args:
      array: of a floating dtype; a kernel is [..., in, out].
      axis: the entries along it share a scale; of a kernel these are the weights of an output.

    Returns:
      int8 `qvalue`, shaped like the array, and float32 `scale`, of size 1 along `axis`: the largest
      entry / 127.5. Their product is off by at most half a scale.
    """
    axis %= array.ndim
    channels = [other for other in range(array.ndim) if other != axis]
    array = jnp.asarray(array).astype(jnp.float32)
    return qwix.quantize(array, jnp.int8, channelwise_axes=channels)


def matmul(x: jax.Array, kernel: jax.Array | qwix.QArray, dtype: Any) -> jax.Array:
    """Computes `x W` in `dtype`, for a kernel of either kind.

    An int8 kernel is converted to `dtype` when it is used, and again in the backward pass: kept
    from the forward pass, it would take the memory that int8 saves.
    """
    if not isinstance(kernel, qwix.QArray):
        return x @ kernel.astype(dtype)

    @jax.checkpoint
    def product(x, kernel):
        return x @ qwix.dequantize(kernel).astype(dtype)

    return product(x, kernel)


def check_exportable(kernel: jax.Array | qwix.QArray) -> None:
    """Refuses int8 weights: what is written should be what was read, not its rounded copy.

    Raises:
      ValueError: says how to load the base instead.
    """
    if isinstance(kernel, qwix.QArray):
        raise ValueError(
            "int8 weights are neither written nor merged with adapters; load the base with "
            "config.model.base_weights = 'param_dtype' to export it"
        )
