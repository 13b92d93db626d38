"""Low-rank adapters (LoRA, arXiv 2106.09685) on stacked linear layers."""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import qwix
from flax import nnx

from speciarl_jax.models import int8

# What of a policy may have adapters: all linear layers of the text decoder, those that merge the
# patches of a token, and those of the vision encoder's blocks.
TARGETS = ("decoder", "merger", "encoder")


def check_targets(targets: Sequence[str]) -> tuple[str, ...]:
    """Returns `config.model.lora_targets` in the order of `TARGETS`.

    Raises:
      ValueError: one is unknown, or there are none.
    """
    unknown = [target for target in targets if target not in TARGETS]
    if unknown or not targets or isinstance(targets, str):
        raise ValueError(
            f"config.model.lora_targets is {targets!r}; name one or more of {TARGETS}, "
            "('decoder',) for instance"
        )
    return tuple(target for target in TARGETS if target in targets)


def target_of(kernel: tuple[str, ...]) -> str:
    """Returns which of `TARGETS` a kernel of a linear layer belongs to, by its path in a policy."""
    if kernel[0] == "decoder":
        return "decoder"
    return "encoder" if kernel[1] == "blocks" else "merger"


def path_of(kernel: tuple[str, ...]) -> tuple[str, ...]:
    """Returns where the adapter of a kernel lies in a policy, without `_a` or `_b` at the end."""
    if kernel[0] == "visual":
        return ("visual", "lora", "_".join(kernel[1:]))
    return (kernel[0], "lora", kernel[-1])


def pair_of(
    state: Mapping[tuple[str, ...], Any], kernel: tuple[str, ...]
) -> tuple[Any, Any] | None:
    """Returns both halves of the adapter of a kernel in a flat state, or None."""
    *root, name = path_of(kernel)
    halves = tuple(state.get((*root, f"{name}_{half}")) for half in "ab")
    return None if halves[0] is None else halves


def adapters(
    layers: int, in_features: int, out_features: int, rank: int, axes: tuple[str, str], key
) -> tuple[nnx.LoRAParam, nnx.LoRAParam]:
    """Makes the pair A [layers, in, rank], B [layers, rank, out] of a linear layer, float32.

    A is uniform in +-1/sqrt(in), as PEFT initialises it, and B zero: fresh adapters change nothing.

    Args:
      axes: logical axes of the linear layer's input and output.
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
    """Computes `x W + b + scale (x A) B` in `dtype`; without an adapter `x W + b`.

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
        y = y + delta(x, *(p.astype(dtype) for p in adapter), scale)
    return y


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def delta(x: jax.Array, a: jax.Array, b: jax.Array, scale: float) -> jax.Array:
    """Computes `scale (x A) B`.

    The backward pass is written out so that the transposed operand of both weight gradients is the
    narrow one, `x A` or its gradient: XLA's CPU backend copies that operand.
    """
    return (x @ a * scale) @ b


def _delta_forward(x, a, b, scale):
    narrow = x @ a * scale
    return narrow @ b, (x, narrow, a, b)


def _delta_backward(scale, residual, d_y):
    x, narrow, a, b = residual
    d_narrow = d_y @ b.T * scale
    d_x = d_narrow @ a.T
    rows = tuple(range(x.ndim - 1))
    d_b = jax.lax.dot_general(narrow, d_y, ((rows, rows), ((), ())))
    d_a = jax.lax.dot_general(d_narrow, x, ((rows, rows), ((), ()))).T
    return d_x, d_a, d_b


delta.defvjp(_delta_forward, _delta_backward)


def merge(
    kernel: jax.Array | qwix.QArray, adapter: tuple[jax.Array, jax.Array], scale: float
) -> jax.Array:
    """Computes `W + scale A B` of stacked layers in float32, cast back to the kernel's dtype.

    It goes layer by layer, so that only one of them is ever there in float32.

    Raises:
      ValueError: the kernel is int8 already; rounded twice, it would lose what the adapter learned.
    """
    return decode_kernel(kernel, adapter, scale, quantized=False)


def decode_kernel(
    kernel: jax.Array | qwix.QArray,
    adapter: tuple[jax.Array, jax.Array] | None,
    scale: float,
    quantized: bool,
) -> jax.Array | qwix.QArray:
    """Makes stacked kernels to decode with: merged as by `merge`, rounded to int8, both or neither.

    Args:
      adapter: to be merged; None for none.
      quantized: round to int8 what is not.

    Raises:
      ValueError: as for `merge`.
    """
    if adapter is not None:
        int8.check_exportable(kernel)
    quantized = quantized and not isinstance(kernel, qwix.QArray)
    if adapter is None and not quantized:
        return kernel

    def one(layer):
        kernel, *pair = layer
        if pair:
            delta = scale * jnp.matmul(*pair, precision="highest")
            kernel = (kernel.astype(jnp.float32) + delta).astype(kernel.dtype)
        return int8.quantize(kernel) if quantized else kernel

    return jax.lax.map(one, (kernel, *(adapter or ())))
