"""Sentence embeddings: a BERT encoder with mean pooling, such as all-MiniLM-L6-v2.

BERT (arXiv 1810.04805) with learned positions and exact GELU; the embedding of a text is the mean
of its tokens' last hidden states, scaled to length 1 (Sentence-BERT, arXiv 1908.10084).
"""

import dataclasses
import json
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from speciarl_jax.models import safetensors_io


@dataclasses.dataclass(frozen=True)
class EncoderConfig:
    """Dimensions; a text of more than `max_tokens` tokens is cut."""

    num_layers: int
    num_heads: int
    norm_eps: float
    max_tokens: int


def read_config(folder: str | pathlib.Path) -> EncoderConfig:
    """Reads `config.json` and, where they exist, `sentence_bert_config.json` and the pooling.

    Raises:
      ValueError: no BERT, another activation or kind of position, or another pooling than the mean.
    """
    folder = pathlib.Path(folder)
    config = safetensors_io.read_json(
        folder / safetensors_io.CONFIG,
        "give the folder of a sentence encoder such as all-MiniLM-L6-v2",
    )
    for key, wanted in (
        ("model_type", "bert"),
        ("hidden_act", "gelu"),
        ("position_embedding_type", "absolute"),
    ):
        found = config.get(key, wanted if key != "model_type" else None)
        if found != wanted:
            raise ValueError(
                f"{folder}/config.json has {key} {found!r}; only {wanted!r} is implemented"
            )
    pooling = folder / "1_Pooling" / safetensors_io.CONFIG
    if pooling.exists() and not json.loads(pooling.read_text()).get("pooling_mode_mean_tokens"):
        raise ValueError(f"{pooling} asks for another pooling than the mean, which is implemented")
    limits, longest = folder / "sentence_bert_config.json", config["max_position_embeddings"]
    if limits.exists():
        longest = min(longest, json.loads(limits.read_text()).get("max_seq_length") or longest)
    keys = ("num_hidden_layers", "num_attention_heads", "layer_norm_eps")
    return EncoderConfig(*(config[key] for key in keys), longest)


def load(folder: str | pathlib.Path) -> tuple[EncoderConfig, dict[str, np.ndarray]]:
    """Reads an encoder: its dimensions, and its tensors in float32 by their published names.

    Raises:
      ValueError: it is another model, or a tensor is missing or unexpected.
    """
    config, reader = read_config(folder), safetensors_io.Reader(folder)
    prefix = "bert." if "bert.embeddings.word_embeddings.weight" in reader else ""
    names = {
        name.removeprefix(prefix): name
        for name in reader
        # Parts that the mean does not use, and a table of 0, 1, 2, ...
        if name.startswith(prefix)
        and not name.removeprefix(prefix).startswith(("pooler.", "embeddings.position_ids", "cls."))
    }
    safetensors_io.check_names(
        folder, set(names), set(_names(config)), "is it a BERT encoder of the stated depth?"
    )
    return config, {name: reader.read(stored).astype(np.float32) for name, stored in names.items()}


_LINEAR = (
    *("attention.self.query", "attention.self.key", "attention.self.value"),
    *("attention.output.dense", "intermediate.dense", "output.dense"),
)
_NORMS = ("attention.output.LayerNorm", "output.LayerNorm")


def _names(config: EncoderConfig) -> list[str]:
    tables = [f"embeddings.{kind}_embeddings.weight" for kind in ("word", "position", "token_type")]
    modules = ["embeddings.LayerNorm"] + [
        f"encoder.layer.{i}.{name}"
        for i in range(config.num_layers)
        for name in (*_LINEAR, *_NORMS)
    ]
    return tables + [f"{name}.{part}" for name in modules for part in ("weight", "bias")]


def encode(
    config: EncoderConfig,
    weights: Mapping[str, Any],
    tokens_BS: jax.Array,
    mask_BS: jax.Array,
) -> jax.Array:
    """Computes embeddings of texts, float32 [B, D] of length 1; traceable.

    Args:
      weights: from `load`.
      tokens_BS: int32, special tokens included, padded on the right.
      mask_BS: bool, true for tokens; at least one in each row.
    """
    positions_S = jnp.arange(tokens_BS.shape[1])
    x_BSD = (
        weights["embeddings.word_embeddings.weight"][tokens_BS]
        + weights["embeddings.position_embeddings.weight"][positions_S]
        + weights["embeddings.token_type_embeddings.weight"][0]
    )
    x_BSD = _norm(x_BSD, weights, "embeddings.LayerNorm", config)
    for i in range(config.num_layers):
        x_BSD = _layer(x_BSD, mask_BS, weights, f"encoder.layer.{i}", config)
    kept_BS1 = mask_BS[..., None].astype(jnp.float32)
    mean_BD = jnp.sum(x_BSD * kept_BS1, axis=1) / jnp.sum(kept_BS1, axis=1)
    return mean_BD / jnp.maximum(jnp.linalg.norm(mean_BD, axis=1, keepdims=True), 1e-12)


def _layer(x_BSD, mask_BS, weights, name, config: EncoderConfig):
    def heads(part):
        y_BSD = _linear(x_BSD, weights, f"{name}.attention.self.{part}")
        return y_BSD.reshape(*y_BSD.shape[:2], config.num_heads, -1)

    mixed_BSHK = jax.nn.dot_product_attention(
        heads("query"), heads("key"), heads("value"), mask=mask_BS[:, None, None, :]
    )
    y_BSD = _linear(mixed_BSHK.reshape(x_BSD.shape), weights, f"{name}.attention.output.dense")
    x_BSD = _norm(x_BSD + y_BSD, weights, f"{name}.attention.output.LayerNorm", config)
    y_BSF = jax.nn.gelu(_linear(x_BSD, weights, f"{name}.intermediate.dense"), approximate=False)
    y_BSD = _linear(y_BSF, weights, f"{name}.output.dense")
    return _norm(x_BSD + y_BSD, weights, f"{name}.output.LayerNorm", config)


def _linear(x, weights, name):
    return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]


def _norm(x, weights, name, config: EncoderConfig):
    centred = x - jnp.mean(x, axis=-1, keepdims=True)
    variance = jnp.mean(centred**2, axis=-1, keepdims=True)
    scaled = centred * jax.lax.rsqrt(variance + config.norm_eps)
    return scaled * weights[f"{name}.weight"] + weights[f"{name}.bias"]
