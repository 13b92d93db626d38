"""FLOPs and bytes of the vision encoder, for plans; a multiply-add is two."""

from speciarl_jax.models.qwen2_5_vl.config import VisionConfig


def encoder_cost(vision: VisionConfig, windows: int, tokens: int) -> tuple[float, float]:
    """Counts the FLOPs of a row of images, and the bytes that are read and written.

    Args:
      windows: W, slots of attention windows; images are padded to whole slots.
      tokens: M, image tokens.
    """
    width, mlp = vision.hidden_size, vision.intermediate_size
    merged = vision.spatial_merge_size**2
    patches = windows * vision.window_units**2 * merged
    full = len(vision.full_attention_layers)
    kernels = 4 * width**2 + 3 * width * mlp
    pairs = full * patches + (vision.depth - full) * patches / windows
    flops = patches * 2 * (vision.patch_dim * width + vision.depth * kernels)
    flops += 4 * patches * pairs * width
    merger = (width * merged) ** 2 + width * merged * vision.out_hidden_size
    flops += 2 * tokens * merger
    # Scores are written and read in float32, activations in two bytes.
    moved = vision.depth * patches * (8 * width + 5 * mlp) * 2
    return flops, moved + 8 * patches * pairs * vision.num_heads
