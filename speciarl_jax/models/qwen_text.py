"""Text models of the Qwen2, Qwen2.5 and Qwen3 families (dense): the decoder without images.

`load` returns a `Decoder`. With three equal rotary positions (`positions`), M-RoPE is plain RoPE.
"""

import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from speciarl_jax.models import safetensors_io
from speciarl_jax.models.checkpoints import hf_checkpoint, hf_names
from speciarl_jax.models.config_json import Section
from speciarl_jax.models.decoder.decoder import Decoder
from speciarl_jax.models.decoder.text_config import TextConfig, text_sizes

_FAMILIES = ("qwen2", "qwen3")  # Qwen2.5 calls itself qwen2


def config_from_hf(config: Mapping[str, Any]) -> TextConfig:
    """Reads a parsed `config.json` of `Qwen2ForCausalLM` or `Qwen3ForCausalLM`.

    Raises:
      ValueError: another architecture, a missing key, a value of the wrong kind, or an option that
        is not implemented.
    """
    family = config.get("model_type")
    if family not in _FAMILIES:
        raise ValueError(
            f"config.json has model_type {family!r}; this loader reads the dense text models "
            f"{_FAMILIES}, no mixture of experts"
        )
    root = Section(config)
    rope = root.section("rope_parameters", "rope_scaling")
    try:
        _refuse_unimplemented(root, rope)
        sizes = text_sizes(root)
        # Qwen3 has heads of 128 channels whatever its width is, unless it says otherwise.
        natural = sizes["hidden_size"] // sizes["num_heads"]
        head_dim = 128 if family == "qwen3" else natural
        if root.get("head_dim") is not None:
            head_dim = root.whole("head_dim")
        override = None if head_dim * sizes["num_heads"] == sizes["hidden_size"] else head_dim
        return TextConfig(
            **sizes,
            # With three equal positions it does not matter which of them a frequency takes.
            mrope_section=(head_dim // 2, 0, 0),
            rope_theta=(rope if "rope_theta" in rope else root).number("rope_theta", 10_000.0),
            norm_eps=root.number("rms_norm_eps"),
            head_dim_override=override,
            tie_word_embeddings=bool(root.get("tie_word_embeddings")),
            qkv_bias=family == "qwen2",
            qk_norm=family == "qwen3",
        )
    except KeyError as error:
        raise ValueError(f"config.json lacks {error}; is it a checkpoint of {family}?") from None


def _refuse_unimplemented(config: Section, rope: Section) -> None:
    layers = config.whole("num_hidden_layers")
    windows = config.get("use_sliding_window") and config.get("sliding_window")
    if config.get("layer_types"):
        in_use = set(config.get("layer_types")) != {"full_attention"}
    else:
        in_use = windows and config.whole("max_window_layers", layers, least=0) < layers
    kind = rope.get("rope_type", rope.get("type", "default"))
    activation = config.get("hidden_act", "silu")
    for refused, what in (
        (in_use, "sliding-window attention (use_sliding_window, layer_types)"),
        (kind != "default", f"rope type {kind!r}"),
        (activation != "silu", f"hidden_act {activation!r}"),
        (config.get("attention_bias"), "attention_bias"),
    ):
        if refused:
            raise ValueError(f"config.json asks for {what}, which is not implemented")


def load(
    folder: str | pathlib.Path,
    *,
    dtype: Any = jnp.bfloat16,
    param_dtype: Any = jnp.bfloat16,
    scan_unroll: int = 1,
    put: hf_checkpoint.Put | None = None,
) -> tuple[TextConfig, Decoder]:
    """Reads a checkpoint folder into a decoder without LoRA.

    Args:
      folder: holds `config.json` and safetensors.
      dtype: of the matrix products.
      scan_unroll: layers in one turn of the loop over layers.
      put: places a parameter on its devices; the default device when None.

    Raises:
      ValueError: a tensor is missing, unexpected or of the wrong shape, a file is damaged, or the
        model is another one (`config_from_hf`).
    """
    config = hf_checkpoint.read_config(folder, config_from_hf)

    options = {"dtype": dtype, "param_dtype": param_dtype, "scan_unroll": scan_unroll}
    decoder = nnx.eval_shape(lambda: Decoder(config, rngs=nnx.Rngs(0), **options))
    state = dict(nnx.to_flat_state(nnx.state(decoder)))
    # In the table of names the decoder is part of a model with images.
    placed = {("decoder", *path): variable for path, variable in state.items()}
    reader = safetensors_io.Reader(folder)
    hf_checkpoint.fill(placed, reader, hf_names.text_sources(config), param_dtype, put)
    nnx.update(decoder, nnx.from_flat_state(list(state.items())))
    return config, decoder


def positions(mask_BS: jax.Array) -> jax.Array:
    """Counts the tokens of each row from 0, without padding on either side; int32 [3, B, S]."""
    position_BS = jnp.maximum(jnp.cumsum(mask_BS, axis=1, dtype=jnp.int32) - 1, 0)
    return jnp.broadcast_to(position_BS, (3, *position_BS.shape))


def logits(decoder: Decoder, tokens_BS: jax.Array, mask_BS: jax.Array) -> jax.Array:
    """Computes float32 logits [B, S, V] of whole sequences; those at padding mean nothing."""
    hidden_BSD, _ = decoder.prefill(
        decoder.embed(tokens_BS), positions(mask_BS), mask_BS, use_lora=False
    )
    return decoder.logits(hidden_BSD)
