"""Dimensions of Qwen2.5-VL, read from and written to a Hugging Face `config.json`."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from speciarl_jax.models.config_json import Section


@dataclasses.dataclass(frozen=True)
class VisionConfig:
    """Dimensions of the vision encoder; sizes are in patches or channels where no comment is."""

    depth: int
    hidden_size: int
    intermediate_size: int
    num_heads: int
    out_hidden_size: int
    patch_size: int = 14  # pixels
    temporal_patch_size: int = 2  # frames; a still image is repeated
    spatial_merge_size: int = 2  # patches a side that become one token
    window_size: int = 112  # pixels
    full_attention_layers: tuple[int, ...] = (7, 15, 23, 31)
    in_channels: int = 3
    rope_theta: float = 10_000.0
    norm_eps: float = 1e-6

    def __post_init__(self):
        if self.hidden_size % self.num_heads or (self.hidden_size // self.num_heads) % 4:
            raise ValueError(
                f"vision hidden_size {self.hidden_size} over {self.num_heads} heads must give a "
                "head size that is a multiple of 4 (two rotary axes)"
            )
        unit = self.patch_size * self.spatial_merge_size
        if self.window_size < unit or self.window_size % unit:
            raise ValueError(
                f"vision window_size {self.window_size} px must be a multiple of one merged "
                f"token, {unit} px (patch_size x spatial_merge_size)"
            )
        outside = [i for i in self.full_attention_layers if not 0 <= i < self.depth]
        if outside:
            raise ValueError(f"fullatt_block_indexes {outside} lie outside {self.depth} blocks")

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_heads

    @property
    def patch_dim(self) -> int:
        """Number of values in a flattened patch: channels x frames x height x width."""
        return self.in_channels * self.temporal_patch_size * self.patch_size**2

    @property
    def window_units(self) -> int:
        """Side of an attention window, in merged tokens."""
        return self.window_size // (self.patch_size * self.spatial_merge_size)


@dataclasses.dataclass(frozen=True)
class TextConfig:
    """Dimensions of the text decoder; the last two fields serve Qwen2, Qwen2.5 and Qwen3 too."""

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


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """Dimensions of a whole Qwen2.5-VL, and the tokens that join decoder and vision encoder."""

    text: TextConfig
    vision: VisionConfig
    image_token_id: int
    video_token_id: int
    vision_start_token_id: int
    vision_end_token_id: int
    eos_token_id: tuple[int, ...]  # tokens that end a completion; empty if the files name none

    def __post_init__(self):
        if self.vision.out_hidden_size != self.text.hidden_size:
            raise ValueError(
                f"the vision encoder puts out {self.vision.out_hidden_size} channels, the decoder "
                f"reads {self.text.hidden_size}; out_hidden_size must equal the text hidden_size"
            )

    @classmethod
    def from_hf(cls, config: Mapping[str, Any]) -> "ModelConfig":
        """Reads a parsed `config.json`, with the text part nested (`text_config`) or flat.

        Keys that a `vision_config` lacks have the defaults of transformers. The head is tied if the
        root or the text part says so. The end-of-sequence tokens are those of the root, then those
        that only the text part has.

        Raises:
          ValueError: another architecture, a missing key, a value of the wrong kind, or an option
            that is not implemented.
        """
        if config.get("model_type") != "qwen2_5_vl":
            raise ValueError(
                f"config.json has model_type {config.get('model_type')!r}; this loader reads "
                "'qwen2_5_vl'"
            )
        root = Section(config)
        text = root if config.get("text_config") is None else root.section("text_config")
        try:
            return cls(
                text=_text_from_hf(text, root),
                vision=_vision_from_hf(Section(config["vision_config"], "vision_config")),
                eos_token_id=tuple(dict.fromkeys(end_tokens(root) + end_tokens(text))),
                **{key: root.whole(key, least=0) for key in _TOKENS},
            )
        except KeyError as error:
            raise ValueError(f"config.json lacks {error}; is it a Qwen2.5-VL checkpoint?") from None

    def to_hf(self) -> dict[str, Any]:
        """Returns the `config.json` that `transformers` and this package read back."""
        text, vision = self.text, self.vision
        rope = {"rope_type": "default", "rope_theta": text.rope_theta}
        shared = {
            "eos_token_id": one_or_all(self.eos_token_id),
            "tie_word_embeddings": text.tie_word_embeddings,
        }
        head_dim = {"head_dim": text.head_dim_override} if text.head_dim_override else {}
        return {
            "architectures": ["Qwen2_5_VLForConditionalGeneration"],
            "model_type": "qwen2_5_vl",
            **{key: getattr(self, key) for key in _TOKENS},
            **shared,
            "text_config": {
                "model_type": "qwen2_5_vl_text",
                **{key: getattr(text, ours) for ours, key in _TEXT_KEYS.items()},
                **head_dim,
                "hidden_act": "silu",
                "rms_norm_eps": text.norm_eps,
                "use_sliding_window": False,
                "rope_parameters": rope | {"mrope_section": list(text.mrope_section)},
                "bos_token_id": None,
                **shared,
            },
            "vision_config": {
                "model_type": "qwen2_5_vl_vision",
                **{key: getattr(vision, key) for key in _VISION_DEFAULTS},
                "fullatt_block_indexes": list(vision.full_attention_layers),
                "in_channels": vision.in_channels,
                "hidden_act": "silu",
                "rope_parameters": {"rope_type": "axial", "rope_theta": vision.rope_theta},
            },
        }


_TOKENS = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")
# Field of `TextConfig` -> its key.
_TEXT_KEYS = {
    "vocab_size": "vocab_size",
    "hidden_size": "hidden_size",
    "intermediate_size": "intermediate_size",
    "num_layers": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "num_kv_heads": "num_key_value_heads",
    "max_position_embeddings": "max_position_embeddings",
}
# Defaults of transformers for keys that `vision_config` lacks (`Qwen2_5_VLVisionConfig`). Its
# versions 4.49 to 4.51 wrote only other values; the published 32B is such a file.
_VISION_DEFAULTS = {
    "depth": 32,
    "hidden_size": 3584,
    "intermediate_size": 3420,
    "num_heads": 16,
    "out_hidden_size": 3584,
    "patch_size": 14,
    "temporal_patch_size": 2,
    "spatial_merge_size": 2,
    "window_size": 112,
}


def text_sizes(config: Section, **defaults: int) -> dict[str, int]:
    """Reads the sizes of a `TextConfig`; `defaults` are of keys that may be missing."""
    return {
        ours: config.whole(key, defaults[key]) if key in defaults else config.whole(key)
        for ours, key in _TEXT_KEYS.items()
    }


def end_tokens(section: Section) -> tuple[int, ...]:
    """Reads `eos_token_id`: a token, a list of them, or nothing. ValueError: it is another kind."""
    value = section.get("eos_token_id")
    if value is None:
        return ()
    if isinstance(value, list | tuple):
        return section.wholes("eos_token_id")
    return (section.whole("eos_token_id", least=0),)


def one_or_all(tokens: tuple[int, ...]) -> int | list[int] | None:
    """Writes `eos_token_id` as files have it: one token, a list of several, or null."""
    return list(tokens) if len(tokens) > 1 else next(iter(tokens), None)


def _text_from_hf(text: Section, root: Section) -> TextConfig:
    if text.get("use_sliding_window"):
        raise ValueError("config.json asks for sliding-window attention, which is not implemented")
    if text.get("hidden_act", "silu") != "silu":
        raise ValueError(
            f"text hidden_act {text.get('hidden_act')!r} is not implemented, only 'silu'"
        )
    rope = text.section("rope_parameters", "rope_scaling")
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind not in ("default", "mrope"):
        raise ValueError(f"rope type {kind!r} is not implemented, only 'default' and 'mrope'")
    sizes = text_sizes(text, max_position_embeddings=128_000)
    head_dim = None if text.get("head_dim") is None else text.whole("head_dim")
    if head_dim and head_dim * sizes["num_heads"] == sizes["hidden_size"]:
        head_dim = None
    return TextConfig(
        **sizes,
        mrope_section=rope.wholes("mrope_section"),
        rope_theta=(rope if "rope_theta" in rope else text).number("rope_theta", 1_000_000.0),
        norm_eps=text.number("rms_norm_eps"),
        head_dim_override=head_dim,
        # Written in either place, by the version of transformers.
        tie_word_embeddings=any(part.get("tie_word_embeddings") for part in (root, text)),
    )


def _vision_from_hf(vision: Section) -> VisionConfig:
    if vision.get("hidden_act", "silu") != "silu":
        raise ValueError(f"vision hidden_act {vision.get('hidden_act')!r} is not implemented")
    channels = "in_channels" if "in_channels" in vision else "in_chans"
    return VisionConfig(
        **{key: vision.whole(key, default) for key, default in _VISION_DEFAULTS.items()},
        full_attention_layers=vision.wholes(
            "fullatt_block_indexes", VisionConfig.full_attention_layers
        ),
        in_channels=vision.whole(channels, 3),
        rope_theta=vision.section("rope_parameters").number("rope_theta", 10_000.0),
    )
