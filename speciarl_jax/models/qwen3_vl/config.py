"""Dimensions of Qwen3-VL (dense), read from and written to a Hugging Face `config.json`."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from speciarl_jax.models import policy_config
from speciarl_jax.models.config_json import Section
from speciarl_jax.models.decoder.text_config import TextConfig, text_from_hf

# The activations that the published encoders have: of the blocks; those of the mergers are exact.
_ACTIVATION = "gelu_pytorch_tanh"


@dataclasses.dataclass(frozen=True)
class VisionConfig:
    """Dimensions of the vision encoder; sizes are in patches or channels where no comment is."""

    depth: int
    hidden_size: int
    intermediate_size: int
    num_heads: int
    out_hidden_size: int
    patch_size: int = 16  # pixels
    temporal_patch_size: int = 2  # frames; a still image is repeated
    spatial_merge_size: int = 2  # patches a side that become one token
    num_position_embeddings: int = 2304  # of a square table, which each image's grid is laid over
    deepstack_layers: tuple[int, ...] = (8, 16, 24)  # whose states become features too
    in_channels: int = 3
    rope_theta: float = 10_000.0
    norm_eps: float = 1e-6

    def __post_init__(self):
        if self.hidden_size % self.num_heads or (self.hidden_size // self.num_heads) % 4:
            raise ValueError(
                f"vision hidden_size {self.hidden_size} over {self.num_heads} heads must give a "
                "head size that is a multiple of 4 (two rotary axes)"
            )
        if self.position_side**2 != self.num_position_embeddings:
            raise ValueError(
                f"num_position_embeddings {self.num_position_embeddings} is not the square of a "
                "whole number; the learned positions are a square table"
            )
        layers = self.deepstack_layers
        if list(layers) != sorted(set(layers)) or any(not 0 <= i < self.depth for i in layers):
            raise ValueError(
                f"deepstack_visual_indexes {list(layers)} must name some of the {self.depth} "
                "blocks, in ascending order and each once"
            )

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_heads

    @property
    def patch_dim(self) -> int:
        """Number of values in a flattened patch: channels x frames x height x width."""
        return self.in_channels * self.temporal_patch_size * self.patch_size**2

    @property
    def position_side(self) -> int:
        """Side of the table of learned positions."""
        return math.isqrt(self.num_position_embeddings)

    @property
    def feature_size(self) -> int:
        """Number of values in the features of a merged token, DeepStack's included."""
        return (1 + len(self.deepstack_layers)) * self.out_hidden_size


@dataclasses.dataclass(frozen=True)
class ModelConfig(policy_config.PolicyConfig):
    """Dimensions of a whole Qwen3-VL."""

    model_type = "qwen3_vl"

    def __post_init__(self):
        super().__post_init__()
        if len(self.vision.deepstack_layers) > self.text.num_layers:
            raise ValueError(
                f"deepstack_visual_indexes names {len(self.vision.deepstack_layers)} blocks, whose "
                f"features go to as many decoder layers, but there are {self.text.num_layers}"
            )

    @classmethod
    def from_hf(cls, config: Mapping[str, Any]) -> "ModelConfig":
        """Reads a parsed `config.json`.

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
            "Qwen3VLForConditionalGeneration",
            {"attention_bias": False, "head_dim": self.text.head_dim},
            {
                **{key: getattr(vision, key) for key in _VISION_DEFAULTS},
                "deepstack_visual_indexes": list(vision.deepstack_layers),
                "hidden_act": _ACTIVATION,
                "rope_parameters": {"rope_type": "axial", "rope_theta": vision.rope_theta},
            },
        )


# Defaults of transformers for keys that `vision_config` lacks (`Qwen3VLVisionConfig`).
_VISION_DEFAULTS = {
    "depth": 27,
    "hidden_size": 1152,
    "intermediate_size": 4304,
    "num_heads": 16,
    "in_channels": 3,
    "out_hidden_size": 3584,
    "patch_size": 16,
    "temporal_patch_size": 2,
    "spatial_merge_size": 2,
    "num_position_embeddings": 2304,
}


def _text_from_hf(text: Section, root: Section) -> TextConfig:
    if text.get("attention_bias"):
        raise ValueError("config.json asks for attention_bias, which is not implemented")
    rope = text.section("rope_parameters", "rope_scaling")
    if rope.get("mrope_interleaved", True) is not True:
        raise ValueError(
            f"config.json has mrope_interleaved {rope.get('mrope_interleaved')!r}, but Qwen3-VL is "
            "implemented with interleaved rotary axes only"
        )
    return text_from_hf(
        text,
        root,
        rope_theta=500_000.0,
        mrope_section=(24, 20, 20),
        head_dim=128,
        qkv_bias=False,
        qk_norm=True,
        mrope_interleaved=True,
    )


def _vision_from_hf(vision: Section) -> VisionConfig:
    if vision.get("hidden_act", _ACTIVATION) != _ACTIVATION:
        raise ValueError(
            f"vision hidden_act {vision.get('hidden_act')!r} is not implemented, only "
            f"{_ACTIVATION!r}"
        )
    return VisionConfig(
        **{key: vision.whole(key, default) for key, default in _VISION_DEFAULTS.items()},
        deepstack_layers=vision.wholes("deepstack_visual_indexes", VisionConfig.deepstack_layers),
        rope_theta=vision.section("rope_parameters").number("rope_theta", 10_000.0),
    )
