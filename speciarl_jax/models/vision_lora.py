"""Adapters on the linear layers of a vision encoder, which any family's encoder can have."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
from flax import nnx

from speciarl_jax.models import lora


def make(kernels: Mapping[str, nnx.Param], rank: int, rngs: nnx.Rngs) -> nnx.Dict:
    """Makes fresh adapters, which change nothing.

    Args:
      kernels: name -> [layers, in, out], or [in, out] for a layer that there is once.
      rank: r.

    Returns:
      `NAME_a` [layers, in, r] and `NAME_b` [layers, r, out], one layer where there is one.
    """
    found = nnx.Dict()
    for name, kernel in kernels.items():
        *layers, inputs, outputs = kernel.shape
        sizes = (layers[0] if layers else 1, inputs, outputs)
        pair = lora.adapters(*sizes, rank, kernel.axes[-2:], rngs.params())
        found[f"{name}_a"], found[f"{name}_b"] = pair
    return found


def stacks(adapters: nnx.Dict, prefix: str) -> dict[str, jax.Array]:
    """Returns the adapters whose names begin with `prefix`, by the rest of their names."""
    return {
        name.removeprefix(prefix): p[...] for name, p in adapters.items() if name.startswith(prefix)
    }


def linears(
    params: Mapping[str, jax.Array], adapters: Mapping[str, jax.Array], scale: float, dtype: Any
) -> Callable[[str, jax.Array], jax.Array]:
    """Makes `linear(name, x)` of one layer: kernel, `NAME_bias`, and the adapter if there is one.

    Args:
      params: of one layer.
      adapters: `NAME_a` [in, r] and `NAME_b` [r, out] of the same layer; may be empty.
      scale: alpha / r.
      dtype: of the products.
    """

    def linear(name, x):
        pair = None
        if f"{name}_a" in adapters:
            pair = adapters[f"{name}_a"], adapters[f"{name}_b"]
        return lora.linear(x, params[name], params[f"{name}_bias"], pair, scale, dtype)

    return linear
