"""Where the patches of a batch of images stand, on the host: numpy, from sizes only."""

from collections.abc import Sequence

import flax.struct
import jax
import numpy as np

from speciarl_jax.models.image_tokens import Grid, check_grid, pad_columns, token_bucket
from speciarl_jax.models.qwen3_vl.config import VisionConfig


@flax.struct.dataclass
class VisionLayout:
    """Says which image each patch of a row belongs to, and where it lies in it.

    Patches keep the order of the image processor, in which those of one merged token are
    neighbours. A row's images follow one another, and padding comes last.
    """

    patch_index_BS: jax.Array  # int32, which patch of the row stands here; -1 padding
    image_BS: jax.Array  # int32, which image of the row it belongs to; -1 padding
    hw_BS2: jax.Array  # int32, its row and column in its image
    grid_BS2: jax.Array  # int32, height and width of its image in patches; 1 at padding
    token_index_BM: jax.Array  # int32, which merged token of the sequence token m is; -1 padding

    @property
    def sizes(self) -> tuple[int, int]:
        """Number of merged tokens in the sequence and of image tokens M; one number, twice."""
        tokens = self.token_index_BM.shape[1]
        return tokens, tokens

    def pad(self, slots: int, num_tokens: int) -> "VisionLayout":
        """Pads numpy arrays, so that images of many sizes share a compiled program.

        Args:
          slots: merged tokens of the sequence to pad to.
          num_tokens: M to pad to, at least its own; both are one number.

        Raises:
          ValueError: the two differ.
        """
        if slots != num_tokens:
            raise ValueError(f"a sequence of {slots} merged tokens has no {num_tokens} tokens")
        tokens = self.token_index_BM.shape[1]
        patches = (num_tokens - tokens) * (self.image_BS.shape[1] // tokens)
        return VisionLayout(
            patch_index_BS=pad_columns(self.patch_index_BS, patches),
            image_BS=pad_columns(self.image_BS, patches),
            hw_BS2=pad_columns(self.hw_BS2, patches, 0),
            grid_BS2=pad_columns(self.grid_BS2, patches, 1),
            token_index_BM=pad_columns(self.token_index_BM, num_tokens - tokens),
        )


def vision_layout(grids: Sequence[Sequence[Grid]], config: VisionConfig) -> VisionLayout:
    """Lays out the images of each row, padded to the largest row.

    Args:
      grids: for each row the grids of its images, in order; a row may have none.

    Raises:
      ValueError: a grid that does not divide into merged tokens.
    """
    merge, (_, tokens) = config.spatial_merge_size, vision_sizes(grids, config)
    shape = (len(grids), tokens * merge**2)
    image_BS = np.full(shape, -1, np.int32)
    hw_BS2, grid_BS2 = np.zeros((*shape, 2), np.int32), np.ones((*shape, 2), np.int32)
    for b, row in enumerate(grids):
        start = 0
        for number, grid in enumerate(row):
            end = start + grid[0] * grid[1]
            image_BS[b, start:end] = number
            hw_BS2[b, start:end] = _places(*grid, merge)
            grid_BS2[b, start:end] = grid
            start = end
    order_S, order_M = np.arange(shape[1]), np.arange(tokens)
    return VisionLayout(
        patch_index_BS=np.where(image_BS >= 0, order_S, -1).astype(np.int32),
        image_BS=image_BS,
        hw_BS2=hw_BS2,
        grid_BS2=grid_BS2,
        token_index_BM=np.where(image_BS[:, :: merge**2] >= 0, order_M, -1).astype(np.int32),
    )


def vision_sizes(
    grids: Sequence[Sequence[Grid]], config: VisionConfig, growth: float = 1.0
) -> tuple[int, int]:
    """Returns the merged tokens of the largest row's sequence, and again as its image tokens M.

    Args:
      grids: for each row the grids of its images.
      growth: 1 for what the batch needs and no more; above 1, the next bucket size.

    Raises:
      ValueError: a grid that does not divide into merged tokens.
    """
    merge = config.spatial_merge_size
    for row in grids:
        for grid in row:
            check_grid(*grid, merge)
    most = max([1, *(sum(h * w for h, w in row) // merge**2 for row in grids)])
    tokens = token_bucket(most, growth)
    return tokens, tokens


def _places(height: int, width: int, merge: int) -> np.ndarray:
    """Returns row and column of an image's patches, int [patches, 2], in the processor's order."""
    hw = np.stack(np.indices((height, width)), axis=-1)
    blocks = hw.reshape(height // merge, merge, width // merge, merge, 2)
    return blocks.swapaxes(1, 2).reshape(-1, 2)
