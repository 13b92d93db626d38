"""Dimensions of Qwen3-VL (dense), read from and written to a Hugging Face `config.json`."""

import dataclasses
import math
from typing import Any

from speciarl_jax.models import policy_config, vision_config
from speciarl_jax.models.config_json import Section
from speciarl_jax.models.decoder.text_config import TextConfig, text_from_hf


@dataclasses.dataclass(frozen=True)
class VisionConfig(vision_config.VisionConfig):
    """Dimensions of the vision encoder; sizes are in patches or channels where no comment is."""

    hidden_act = "gelu_pytorch_tanh"  # of the blocks; those of the mergers are exact
    # `Qwen3VLVisionConfig`.
    file_defaults = {
        "depth": 27,
        "hidden_size": 1152,
        "intermediate_size": 4304,
        "num_heads": 16,
        "out_hidden_size": 3584,
        "patch_size": 16,
        "temporal_patch_size": 2,
        "spatial_merge_size": 2,
        "num_position_embeddings": 2304,
    }
    file_lists = {"deepstack_layers": "deepstack_visual_indexes"}

    patch_size: int = 16  # pixels
    num_position_embeddings: int = 2304  # of a square table, which each image's grid is laid over
    deepstack_layers: tuple[int, ...] = (8, 16, 24)  # whose states become features too

    def __post_init__(self):
        super().__post_init__()
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
    architecture = "Qwen3VLForConditionalGeneration"
    vision_type = VisionConfig

    def __post_init__(self):
        super().__post_init__()
        if len(self.vision.deepstack_layers) > self.text.num_layers:
            raise ValueError(
                f"deepstack_visual_indexes names {len(self.vision.deepstack_layers)} blocks, whose "
                f"features go to as many decoder layers, but there are {self.text.num_layers}"
            )

    @classmethod
    def _read_text(cls, text: Section, root: Section) -> TextConfig:
        if text.get("attention_bias"):
            raise ValueError("config.json asks for attention_bias, which is not implemented")
        rope = text.section("rope_parameters", "rope_scaling")
        if rope.get("mrope_interleaved", True) is not True:
            raise ValueError(
                f"config.json has mrope_interleaved {rope.get('mrope_interleaved')!r}, but "
                "Qwen3-VL is implemented with interleaved rotary axes only"
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

    def _own_text(self) -> dict[str, Any]:
        return {"attention_bias": False, "head_dim": self.text.head_dim}
