"""FLOPs and bytes of the vision encoder, for plans."""

from speciarl_jax.models.qwen3_vl.config import VisionConfig
from speciarl_jax.models.vision_cost import transformer_cost


def encoder_cost(vision: VisionConfig, slots: int, tokens: int) -> tuple[float, float]:
    """Counts the FLOPs of a row of images, and the bytes that are read and written.

    Args:
      slots: merged tokens of the sequence, padding included.
      tokens: M, image tokens; the same number.
    """
    patches = slots * vision.spatial_merge_size**2
    return transformer_cost(
        vision,
        patches=patches,
        pairs=vision.depth * patches,
        mlp_kernels=2,
        mlp_values=3,
        tokens=tokens,
        mergers=1 + len(vision.deepstack_layers),
    )
