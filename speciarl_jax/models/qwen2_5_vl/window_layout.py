"""Geometry on the host: attention windows of images, rotary positions of prompts, static sizes.

Everything here is numpy and depends on sizes and placeholder tokens only, never on pixels.
"""

import functools
import math
from collections.abc import Sequence
from typing import NamedTuple

import flax.struct
import jax
import numpy as np

from speciarl_jax.models.qwen2_5_vl.config import ModelConfig, VisionConfig

# (height, width) of one image, in patches.
Grid = tuple[int, int]

# Image tokens of bucket sizes are multiples of this.
_TOKEN_MULTIPLE = 16


@flax.struct.dataclass
class VisionLayout:
    """Says where each patch of a batch of images stands in the sequence of its row.

    The sequence is W slots of `S / W` patches, as many as a whole attention window has. A slot
    holds one whole window, or several small ones from the right and lower borders of images. So
    window attention is a reshape and a mask inside of slots, and full attention a mask of images.
    The patches of one merged token are neighbours, as they are in the processor's order.
    """

    # int32, which patch of the row (processor's order) stands here; -1 padding.
    patch_index_BS: jax.Array
    image_BS: jax.Array  # int32, which image of the row it belongs to; -1 padding
    window_BS: jax.Array  # int32, which attention window of the row it belongs to; -1 padding
    hw_BS2: jax.Array  # int32, its row and column in its image
    # int32, where merged token m (processor's order) stands, in units of one merged token; -1
    # padding.
    token_index_BM: jax.Array
    num_windows: int = flax.struct.field(pytree_node=False)  # W, static


class _Row(NamedTuple):
    """The merged tokens of a row's images in the processor's order, and the slots they take."""

    place_M: np.ndarray
    image_M: np.ndarray
    window_M: np.ndarray
    rc_M2: np.ndarray
    slots: int


def vision_layout(grids: Sequence[Sequence[Grid]], config: VisionConfig) -> VisionLayout:
    """Lays out the images of each row, padded to the largest row.

    Args:
      grids: for each row the grids of its images, in order; a row may have none.

    Raises:
      ValueError: a grid that does not divide into merged tokens.
    """
    rows = [_row_layout(tuple(row), config) for row in grids]
    windows, tokens = vision_sizes(grids, config)
    merge, units = config.spatial_merge_size, windows * config.window_units**2

    def spread(values, *end, fill=-1):
        """Puts values of a row's merged tokens where the tokens stand."""
        array_BU = np.full((len(rows), units, *end), fill, np.int32)
        for b, row in enumerate(rows):
            array_BU[b, row.place_M] = values(row)
        return array_BU

    token_BU = spread(lambda row: np.arange(len(row.place_M)))
    image_BU, window_BU = spread(lambda row: row.image_M), spread(lambda row: row.window_M)
    rc_BU2 = spread(lambda row: row.rc_M2, 2, fill=0)
    token_index_BM = np.full((len(rows), tokens), -1, np.int32)
    for b, row in enumerate(rows):
        token_index_BM[b, : len(row.place_M)] = row.place_M
    k = np.arange(merge**2)
    patch_BUk = np.where(token_BU[..., None] >= 0, token_BU[..., None] * merge**2 + k, -1)
    hw_BUk2 = rc_BU2[:, :, None] * merge + np.stack([k // merge, k % merge], axis=-1)
    return VisionLayout(
        patch_index_BS=patch_BUk.reshape(len(rows), -1).astype(np.int32),
        image_BS=np.repeat(image_BU, merge**2, axis=1),
        window_BS=np.repeat(window_BU, merge**2, axis=1),
        hw_BS2=hw_BUk2.reshape(len(rows), -1, 2).astype(np.int32),
        token_index_BM=token_index_BM,
        num_windows=windows,
    )


def pad_layout(layout: VisionLayout, num_windows: int, num_tokens: int) -> VisionLayout:
    """Pads a layout of numpy arrays, so that images of many sizes share a compiled program.

    Args:
      layout: of numpy arrays.
      num_windows: W to pad to, at least its own.
      num_tokens: M to pad to, likewise.
    """
    tokens = layout.token_index_BM.shape[1]
    per_slot = layout.patch_index_BS.shape[1] // layout.num_windows
    slots = (num_windows - layout.num_windows) * per_slot

    def pad(x, after, value=-1):
        widths = [(0, 0), (0, after)] + [(0, 0)] * (x.ndim - 2)
        return np.pad(x, widths, constant_values=value)

    return VisionLayout(
        patch_index_BS=pad(layout.patch_index_BS, slots),
        image_BS=pad(layout.image_BS, slots),
        window_BS=pad(layout.window_BS, slots),
        hw_BS2=pad(layout.hw_BS2, slots, 0),
        token_index_BM=pad(layout.token_index_BM, num_tokens - tokens),
        num_windows=num_windows,
    )


def vision_sizes(
    grids: Sequence[Sequence[Grid]], config: VisionConfig, growth: float = 1.0
) -> tuple[int, int]:
    """Returns windows W and image tokens M for the largest row of a batch.

    Args:
      grids: for each row the grids of its images.
      growth: 1 for what the batch needs and no more; above 1, the next bucket size
        (`bucket`), so that batches of any sizes need few compiled programs.

    Raises:
      ValueError: a grid that does not divide into merged tokens.
    """
    rows = [_row_layout(tuple(row), config) for row in grids]
    tokens = bucket(max([1, *(len(row.place_M) for row in rows)]), growth, _TOKEN_MULTIPLE)
    windows = max([1, *(row.slots for row in rows)])
    if growth > 1:
        # So many tokens mostly fill `full` windows; small ones that do not pack well need more.
        full = math.ceil(tokens / config.window_units**2)
        windows = full if windows <= full else full + bucket(windows - full, growth, full // 4)
    return windows, tokens


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


@functools.lru_cache(maxsize=1024)
def _row_layout(row: tuple[Grid, ...], config: VisionConfig) -> _Row:
    merge, side = config.spatial_merge_size, config.window_units
    image, window, rank, rc = ([np.zeros((0, *end), np.int64)] for end in ((), (), (), (2,)))
    windows = 0
    for number, (height, width) in enumerate(row):
        if height < merge or width < merge or height % merge or width % merge:
            raise ValueError(
                f"an image of {height} x {width} patches does not divide into merged tokens of "
                f"{merge} x {merge}; resize it with the checkpoint's image processor"
            )
        rows, columns = height // merge, width // merge
        r, c = (axis.ravel() for axis in np.indices((rows, columns)))
        across = -(-columns // side)
        image.append(np.full_like(r, number))
        window.append(windows + r // side * across + c // side)
        windows += -(-rows // side) * across
        # A window at the right border is narrower.
        rank.append(r % side * np.minimum(side, columns - c // side * side) + c % side)
        rc.append(np.stack([r, c], axis=-1))
    window_M = np.concatenate(window)
    slot, offset, slots = _pack(np.bincount(window_M, minlength=windows), side**2)
    place_M = slot[window_M] * side**2 + offset[window_M] + np.concatenate(rank)
    return _Row(place_M, np.concatenate(image), window_M, np.concatenate(rc), slots)


def _pack(sizes: np.ndarray, capacity: int) -> tuple[np.ndarray, np.ndarray, int]:
    """Puts windows into slots, largest first, each into the first slot with room for it.

    Returns:
      The slot of each window, its offset there, and the number of slots.
    """
    slot, offset = np.zeros_like(sizes), np.zeros_like(sizes)
    used: list[int] = []
    first = 0  # with room
    for window in np.argsort(-sizes, kind="stable"):
        size = int(sizes[window])
        rooms = range(first, len(used))
        chosen = next((k for k in rooms if used[k] + size <= capacity), len(used))
        if chosen == len(used):
            used.append(0)
        slot[window], offset[window] = chosen, used[chosen]
        used[chosen] += size
        while first < len(used) and used[first] == capacity:
            first += 1
    return slot, offset, len(used)


def mrope_positions(
    tokens_BP: np.ndarray,
    mask_BP: np.ndarray,
    grids: Sequence[Sequence[Grid]],
    config: ModelConfig,
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
