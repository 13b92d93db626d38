"""Qwen3-VL, dense (arXiv 2511.21631): dimensions, vision encoder and names of its tensors."""

from speciarl_jax.models.family import Family
from speciarl_jax.models.qwen3_vl import config, presets, vision
from speciarl_jax.models.qwen3_vl.layout import vision_layout, vision_sizes
from speciarl_jax.models.qwen3_vl.vision_cost import encoder_cost
from speciarl_jax.models.qwen3_vl.vision_names import vision_sources

FAMILY = Family(
    title="Qwen3-VL",
    config=config.ModelConfig,
    encoder=vision.VisionEncoder,
    vision_layout=vision_layout,
    vision_sizes=vision_sizes,
    encoder_cost=encoder_cost,
    vision_sources=vision_sources,
    text_prefix="model.language_model.",
    presets=presets.CONFIGS,
)
