"""Qwen2.5-VL (arXiv 2502.13923): dimensions, vision encoder and names of its tensors."""

from speciarl_jax.models.family import Family
from speciarl_jax.models.qwen2_5_vl import config, presets, vision
from speciarl_jax.models.qwen2_5_vl.vision_cost import encoder_cost
from speciarl_jax.models.qwen2_5_vl.vision_names import vision_sources
from speciarl_jax.models.qwen2_5_vl.window_layout import vision_layout, vision_sizes

FAMILY = Family(
    title="Qwen2.5-VL",
    config=config.ModelConfig,
    encoder=vision.VisionEncoder,
    vision_layout=vision_layout,
    vision_sizes=vision_sizes,
    encoder_cost=encoder_cost,
    vision_sources=vision_sources,
    text_prefix="model.",
    presets=presets.CONFIGS,
)
