"""What images take of a prompt: sizes of buckets, and rotary positions.

Everything here is numpy and depends on sizes and placeholder tokens only, never on pixels.
"""

import math
from collections.abc import Sequence

import numpy as np

from speciarl_jax.models.policy_config import PolicyConfig

# (height, width) of one image, in patches.
Grid = tuple[int, int]

# Image tokens of bucket sizes are multiples of this.
_TOKEN_MULTIPLE = 16


def check_grid(height: int, width: int, merge: int) -> None:
    """Refuses an image whose patches do not divide into merged tokens.

    Args:
      height: in patches.
      width: in patches.
      merge: patches a side that become one token.

    Raises:
      ValueError: names both sizes.
    """
    if height < merge or width < merge or height % merge or width % merge:
        raise ValueError(
            f"an image of {height} x {width} patches does not divide into merged tokens of "
            f"{merge} x {merge}; resize it with the checkpoint's image processor"
        )


def token_bucket(needed: int, growth: float) -> int:
    """Returns the bucket size of so many image tokens (`bucket`)."""
    return bucket(needed, growth, _TOKEN_MULTIPLE)


def pad_columns(x: np.ndarray, count: int, value: int = -1) -> np.ndarray:
    """Pads the second axis of an array at its end."""
    widths = [(0, 0), (0, count)] + [(0, 0)] * (x.ndim - 2)
    return np.pad(x, widths, constant_values=value)


def bucket(needed: int, growth: float, multiple: int = 1) -> int:
    """Returns the smallest bucket size that holds `needed`.

    Sizes start at `multiple`; each is `growth` times the one before, rounded up to a multiple. So
    padding is less than `1 - 1 / growth` of a size, plus at most one rounding.

    Args:
      needed: at least 1.
      growth: of the sizes; at 1 the result is `needed` itself.
      multiple: that divides all sizes.
    """
    if growth <= 1:
        return needed
    step = multiple = max(1, multiple)
    while step < needed:
        step = max(step + multiple, math.ceil(step * growth / multiple) * multiple)
    return step


def mrope_positions(
    tokens_BP: np.ndarray,
    mask_BP: np.ndarray,
    grids: Sequence[Sequence[Grid]],
    config: PolicyConfig,
) -> tuple[np.ndarray, np.ndarray]:
    """Computes rotary positions of prompts with images (M-RoPE, arXiv 2409.12191, section 2.1).

    Text counts up alike on the three axes. An image's tokens share one temporal position and count
    rows and columns; the text after it goes on from the largest position so far.

    Args:
      tokens_BP: int32 tokens with the image placeholders already repeated.
      mask_BP: bool, false at padding, on either side.
      grids: for each row the grids (in patches) of its images.

    Returns:
      int32 positions [3, B, P] (1 at padding, as the published code has it), and int32 [B], the
      position of the first token after the prompt.

    Raises:
      ValueError: placeholders and images do not match.
    """
    merge = config.vision.spatial_merge_size
    positions_3BP = np.ones((3, *tokens_BP.shape), np.int32)
    next_position_B = np.zeros(len(tokens_BP), np.int32)
    for b, row in enumerate(grids):
        tokens = tokens_BP[b][mask_BP[b]]
        is_image = tokens == config.image_token_id
        expected = sum((h // merge) * (w // merge) for h, w in row)
        if is_image.sum() != expected:
            raise ValueError(
                f"row {b} holds {is_image.sum()} image placeholders, its images {row} (patches) "
                f"need {expected}"
            )
        parts, start, position = [], 0, 0

        def text(length, position):
            return np.broadcast_to(position + np.arange(length), (3, length))

        for height, width in row:
            height, width = height // merge, width // merge
            image = start + int(np.argmax(is_image[start:]))
            parts.append(text(image - start, position))
            position += image - start
            r, c = (axis.ravel() for axis in np.indices((height, width)))
            parts.append(position + np.stack([np.zeros_like(r), r, c]))
            position += max(height, width)
            start = image + height * width
        parts.append(text(len(tokens) - start, position))
        row_positions = np.concatenate(parts, axis=1)
        positions_3BP[:, b, mask_BP[b]] = row_positions
        next_position_B[b] = row_positions.max(initial=-1) + 1
    return positions_3BP, next_position_B
