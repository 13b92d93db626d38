"""Weights in int8 with a scale for each output channel, as `qwix` makes and reads them.

Half the bytes of bfloat16, for a base that is never trained: products, adapters and gradients stay
in floating point.
"""

from typing import Any

import jax
import jax.numpy as jnp
import qwix


def quantize(kernel: jax.Array) -> qwix.QArray:
    """Rounds kernels to the nearest of 256 steps; the middle one is exactly 0.

    Args:
      kernel: [..., in, out].

    Returns:
      int8 `qvalue` [..., in, out] and float32 `scale` [..., 1, out], which is the largest weight of
      each output channel / 127.5. Their product is off by at most half a scale.
    """
    inputs = kernel.ndim - 2
    channels = [axis for axis in range(kernel.ndim) if axis != inputs]
    kernel = jnp.asarray(kernel).astype(jnp.float32)
    return qwix.quantize(kernel, jnp.int8, channelwise_axes=channels)


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
