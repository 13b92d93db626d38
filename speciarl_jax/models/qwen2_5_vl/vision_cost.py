"""FLOPs and bytes of the vision encoder, for plans."""

from speciarl_jax.models.qwen2_5_vl.config import VisionConfig
from speciarl_jax.models.vision_cost import transformer_cost


def encoder_cost(vision: VisionConfig, windows: int, tokens: int) -> tuple[float, float]:
    """Counts the FLOPs of a row of images, and the bytes that are read and written.

    Args:
      windows: W, slots of attention windows; images are padded to whole slots.
      tokens: M, image tokens.
    """
    patches = windows * vision.window_units**2 * vision.spatial_merge_size**2
    full = len(vision.full_attention_layers)
    return transformer_cost(
        vision,
        patches=patches,
        pairs=full * patches + (vision.depth - full) * patches / windows,
        mlp_kernels=3,
        mlp_values=5,
        tokens=tokens,
        mergers=1,
    )
