"""Dimensions of a text decoder, read from and written to a Hugging Face `config.json`."""

import dataclasses
from typing import Any

from speciarl_jax.models.config_json import Section


@dataclasses.dataclass(frozen=True)
class TextConfig:
    """Dimensions of the text decoder; it serves Qwen2, Qwen2.5 and Qwen3 too."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    mrope_section: tuple[int, int, int] = (16, 24, 24)  # temporal, height, width; in pairs
    rope_theta: float = 1_000_000.0
    norm_eps: float = 1e-6
    max_position_embeddings: int = 128_000
    head_dim_override: int | None = None
    tie_word_embeddings: bool = False
    qkv_bias: bool = True  # biases of queries, keys and values
    qk_norm: bool = False  # every head's query and key is normed before it is rotated
    # The frequencies of the three axes take turns; otherwise each axis has a run of them.
    mrope_interleaved: bool = False

    def __post_init__(self):
        if self.head_dim_override is None and self.hidden_size % self.num_heads:
            raise ValueError(
                f"hidden_size {self.hidden_size} is not divisible by {self.num_heads} heads"
            )
        if self.num_heads % self.num_kv_heads:
            raise ValueError(
                f"{self.num_heads} attention heads cannot share {self.num_kv_heads} key-value heads"
            )
        if len(self.mrope_section) != 3 or 2 * sum(self.mrope_section) != self.head_dim:
            raise ValueError(
                f"mrope_section {self.mrope_section} covers {2 * sum(self.mrope_section)} channels,"
                f" but the head size is {self.head_dim}; its three numbers must sum to half of it"
            )

    @property
    def head_dim(self) -> int:
        return self.head_dim_override or self.hidden_size // self.num_heads


# Field of `TextConfig` -> its key.
_KEYS = {
    "vocab_size": "vocab_size",
    "hidden_size": "hidden_size",
    "intermediate_size": "intermediate_size",
    "num_layers": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "num_kv_heads": "num_key_value_heads",
    "max_position_embeddings": "max_position_embeddings",
}


def text_sizes(config: Section, **defaults: int) -> dict[str, int]:
    """Reads the sizes of a `TextConfig`; `defaults` are of keys that may be missing."""
    return {
        ours: config.whole(key, defaults[key]) if key in defaults else config.whole(key)
        for ours, key in _KEYS.items()
    }


def text_from_hf(
    text: Section,
    root: Section,
    *,
    rope_theta: float,
    mrope_section: tuple[int, int, int] | None = None,
    head_dim: int | None = None,
    **kind: bool,
) -> TextConfig:
    """Reads the decoder of a model with images.

    Args:
      text: the section with its dimensions; it may be the root.
      root: all of `config.json`, which may say that the head is tied.
      rope_theta: where the file has none.
      mrope_section: likewise; None if the file must have it.
      head_dim: likewise; None for hidden size / heads.
      **kind: `qkv_bias`, `qk_norm` and `mrope_interleaved` of `TextConfig`.

    Raises:
      KeyError: a key is missing.
      ValueError: a value of the wrong kind, or an option that is not implemented.
    """
    if experts := text.get("num_experts", text.get("num_local_experts")):
        raise ValueError(
            f"config.json has {experts} experts; mixtures of experts are not implemented, give a "
            "dense checkpoint"
        )
    if text.get("use_sliding_window"):
        raise ValueError("config.json asks for sliding-window attention, which is not implemented")
    if text.get("hidden_act", "silu") != "silu":
        raise ValueError(
            f"text hidden_act {text.get('hidden_act')!r} is not implemented, only 'silu'"
        )
    rope = text.section("rope_parameters", "rope_scaling")
    named = rope.get("rope_type", rope.get("type", "default"))
    if named not in ("default", "mrope"):
        raise ValueError(f"rope type {named!r} is not implemented, only 'default' and 'mrope'")
    sizes = text_sizes(text, max_position_embeddings=128_000)
    if text.get("head_dim") is not None:
        head_dim = text.whole("head_dim")
    if head_dim and head_dim * sizes["num_heads"] == sizes["hidden_size"]:
        head_dim = None
    sections = () if mrope_section is None else (mrope_section,)
    return TextConfig(
        **sizes,
        mrope_section=rope.wholes("mrope_section", *sections),
        rope_theta=(rope if "rope_theta" in rope else text).number("rope_theta", rope_theta),
        norm_eps=text.number("rms_norm_eps"),
        head_dim_override=head_dim,
        # Written in either place, by the version of transformers.
        tie_word_embeddings=any(part.get("tie_word_embeddings") for part in (root, text)),
        **kind,
    )


def text_to_hf(text: TextConfig) -> dict[str, Any]:
    """Returns the dimensions as `text_config` has them, without the name of a model."""
    head_dim = {"head_dim": text.head_dim_override} if text.head_dim_override else {}
    return {
        **{key: getattr(text, ours) for ours, key in _KEYS.items()},
        **head_dim,
        "hidden_act": "silu",
        "rms_norm_eps": text.norm_eps,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": text.rope_theta,
            "mrope_section": list(text.mrope_section),
        },
        "bos_token_id": None,
    }
