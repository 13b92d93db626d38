"""Dimensions of Qwen2.5-VL, read from and written to a Hugging Face `config.json`."""

import dataclasses
from typing import Any

from speciarl_jax.models import policy_config, vision_config
from speciarl_jax.models.config_json import Section
from speciarl_jax.models.decoder.text_config import TextConfig, text_from_hf


@dataclasses.dataclass(frozen=True)
class VisionConfig(vision_config.VisionConfig):
    """Dimensions of the vision encoder; sizes are in patches or channels where no comment is."""

    hidden_act = "silu"
    # `Qwen2_5_VLVisionConfig`. Versions 4.49 to 4.51 of transformers wrote only other values; the
    # published 32B is such a file.
    file_defaults = {
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
    file_lists = {"full_attention_layers": "fullatt_block_indexes"}

    patch_size: int = 14  # pixels
    window_size: int = 112  # pixels
    full_attention_layers: tuple[int, ...] = (7, 15, 23, 31)

    def __post_init__(self):
        super().__post_init__()
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
    def window_units(self) -> int:
        """Side of an attention window, in merged tokens."""
        return self.window_size // (self.patch_size * self.spatial_merge_size)


@dataclasses.dataclass(frozen=True)
class ModelConfig(policy_config.PolicyConfig):
    """Dimensions of a whole Qwen2.5-VL."""

    model_type = "qwen2_5_vl"
    architecture = "Qwen2_5_VLForConditionalGeneration"
    vision_type = VisionConfig

    @classmethod
    def _read_text(cls, text: Section, root: Section) -> TextConfig:
        return text_from_hf(text, root, rope_theta=1_000_000.0)

    def _own_text(self) -> dict[str, Any]:
        return {"use_sliding_window": False}
