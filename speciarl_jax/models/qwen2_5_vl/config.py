"""Dimensions of Qwen2.5-VL, read from and written to a Hugging Face `config.json`."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from speciarl_jax.models import policy_config
from speciarl_jax.models.config_json import Section
from speciarl_jax.models.decoder.text_config import TextConfig, text_from_hf


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
    def feature_size(self) -> int:
        """Number of values in the features of a merged token."""
        return self.out_hidden_size

    @property
    def window_units(self) -> int:
        """Side of an attention window, in merged tokens."""
        return self.window_size // (self.patch_size * self.spatial_merge_size)


@dataclasses.dataclass(frozen=True)
class ModelConfig(policy_config.PolicyConfig):
    """Dimensions of a whole Qwen2.5-VL."""

    model_type = "qwen2_5_vl"

    @classmethod
    def from_hf(cls, config: Mapping[str, Any]) -> "ModelConfig":
        """Reads a parsed `config.json`, with the text part nested (`text_config`) or flat.

        Keys that a `vision_config` lacks have the defaults of transformers. The head is tied if the
        root or the text part says so.

        Raises:
          ValueError: another architecture, a missing key, a value of the wrong kind, or an option
            that is not implemented.
        """
        return cls._read(config, _text_from_hf, _vision_from_hf)

    def to_hf(self) -> dict[str, Any]:
        """Returns the `config.json` that `transformers` and this package read back."""
        vision = self.vision
        return self._written(
            "Qwen2_5_VLForConditionalGeneration",
            {"use_sliding_window": False},
            {
                **{key: getattr(vision, key) for key in _VISION_DEFAULTS},
                "fullatt_block_indexes": list(vision.full_attention_layers),
                "in_channels": vision.in_channels,
                "hidden_act": "silu",
                "rope_parameters": {"rope_type": "axial", "rope_theta": vision.rope_theta},
            },
        )


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


def _text_from_hf(text: Section, root: Section) -> TextConfig:
    return text_from_hf(text, root, rope_theta=1_000_000.0)


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
