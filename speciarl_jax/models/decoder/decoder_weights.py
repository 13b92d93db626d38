"""Random weights of the decoder, each with the logical names of its axes."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from speciarl_jax.models import int8, lora
from speciarl_jax.models.decoder.text_config import TextConfig

# Input and output axes of the linear layers, and whether `config.qkv_bias` gives them a bias.
LINEARS = {
    "q": ("embed", "heads", True),
    "k": ("embed", "kv_heads", True),
    "v": ("embed", "kv_heads", True),
    "o": ("heads", "embed", False),
    "gate": ("embed", "mlp", False),
    "up": ("embed", "mlp", False),
    "down": ("mlp", "embed", False),
}
# The kernels of `LINEARS` are kept as all other weights, or by `int8.quantize`.
BASE_WEIGHTS = ("param_dtype", "int8")


def normal(rngs: nnx.Rngs, shape: tuple[int, ...], axes: tuple[str, ...], dtype: Any) -> nnx.Param:
    """Draws a parameter with a standard deviation of 0.02."""
    value = 0.02 * jax.random.normal(rngs.params(), shape, jnp.float32)
    return nnx.Param(value.astype(dtype), axes=axes)


def constant(
    value: float, shape: tuple[int, ...], axes: tuple[str | None, ...], dtype: Any
) -> nnx.Param:
    """Makes a parameter of equal entries."""
    return nnx.Param(jnp.full(shape, value, dtype), axes=axes)


def check_kind(key: str, kind: str) -> None:
    """Refuses what is none of `BASE_WEIGHTS` (ValueError)."""
    if kind not in BASE_WEIGHTS:
        raise ValueError(f"{key} is {kind!r}; choose one of {BASE_WEIGHTS}")


def layers(
    config: TextConfig, dtype: Any, lora_rank: int, base_weights: str, rngs: nnx.Rngs
) -> tuple[nnx.Dict, nnx.Dict]:
    """Makes the weights of all layers, stacked, and their adapters; the arguments of `Decoder`.

    Raises:
      ValueError: `base_weights` is unknown.
    """
    check_kind("config.model.base_weights", base_weights)
    count, width = config.num_layers, config.hidden_size
    sizes = {
        "embed": width,
        "heads": config.num_heads * config.head_dim,
        "kv_heads": config.num_kv_heads * config.head_dim,
        "mlp": config.intermediate_size,
    }
    weights, adapters = nnx.Dict(), nnx.Dict()
    for name, (inputs, outputs, has_bias) in LINEARS.items():
        shape = (count, sizes[inputs], sizes[outputs])
        weights[name] = normal(rngs, shape, ("layers", inputs, outputs), dtype)
        if base_weights == "int8":
            weights[name].set_value(int8.quantize(weights[name][...]))
        if has_bias and config.qkv_bias:
            weights[f"{name}_bias"] = constant(0, shape[::2], ("layers", outputs), dtype)
        if lora_rank:
            a, b = lora.adapters(*shape, lora_rank, (inputs, outputs), rngs.params())
            adapters[f"{name}_a"], adapters[f"{name}_b"] = a, b
    for name in ("attention_norm", "mlp_norm"):
        weights[name] = constant(1, (count, width), ("layers", "embed"), dtype)
    if config.qk_norm:
        for name in ("q_norm", "k_norm"):
            weights[name] = constant(1, (count, config.head_dim), ("layers", None), dtype)
    return weights, adapters
