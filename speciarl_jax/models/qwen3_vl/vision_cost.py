"""FLOPs and bytes of the vision encoder, for plans; a multiply-add is two."""

from speciarl_jax.models.qwen3_vl.config import VisionConfig


def encoder_cost(vision: VisionConfig, slots: int, tokens: int) -> tuple[float, float]:
    """Counts the FLOPs of a row of images, and the bytes that are read and written.

    Args:
      slots: merged tokens of the sequence, padding included.
      tokens: M, image tokens; the same number.
    """
    width, mlp, unit = vision.hidden_size, vision.intermediate_size, vision.spatial_merge_size**2
    patches = slots * unit
    kernels = 4 * width**2 + 2 * width * mlp
    pairs = vision.depth * patches
    flops = patches * 2 * (vision.patch_dim * width + vision.depth * kernels)
    flops += 4 * patches * pairs * width
    merger = (width * unit) ** 2 + width * unit * vision.out_hidden_size
    flops += 2 * tokens * merger * (1 + len(vision.deepstack_layers))
    # Scores are written and read in float32, activations in two bytes.
    moved = vision.depth * patches * (8 * width + 3 * mlp) * 2
    return flops, moved + 8 * patches * pairs * vision.num_heads
