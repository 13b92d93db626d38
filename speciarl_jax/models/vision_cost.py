"""FLOPs and bytes of vision encoders, for plans; a multiply-add is two."""

from speciarl_jax.models.vision_config import VisionConfig


def transformer_cost(
    vision: VisionConfig,
    *,
    patches: int,
    pairs: float,
    mlp_kernels: int,
    mlp_values: int,
    tokens: int,
    mergers: int,
) -> tuple[float, float]:
    """Counts the FLOPs of a row of images, and the bytes that are read and written.

    Args:
      patches: of the sequence, padding included.
      pairs: patches that a patch attends to, summed over the blocks.
      mlp_kernels: linear layers in the MLP of a block.
      mlp_values: arrays of `intermediate_size` values a patch that an MLP writes or reads.
      tokens: M, image tokens.
      mergers: of the encoder; each makes a feature of every token.
    """
    width, mlp, unit = vision.hidden_size, vision.intermediate_size, vision.spatial_merge_size**2
    kernels = 4 * width**2 + mlp_kernels * width * mlp
    flops = patches * 2 * (vision.patch_dim * width + vision.depth * kernels)
    flops += 4 * patches * pairs * width
    merger = (width * unit) ** 2 + width * unit * vision.out_hidden_size
    flops += 2 * tokens * merger * mergers
    # Scores are written and read in float32, activations in two bytes.
    moved = vision.depth * patches * (8 * width + mlp_values * mlp) * 2
    return flops, moved + 8 * patches * pairs * vision.num_heads
