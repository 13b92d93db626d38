"""Host-side geometry: attention windows of pictures, and rotary positions of prompts.

Everything here is numpy and depends on sizes and placeholder tokens only, never on pixels.
"""

from collections.abc import Sequence

import flax.struct
import jax
import numpy as np

from speciarl_jax.models.qwen2_5_vl.config import ModelConfig, VisionConfig

# (height, width) of one picture, in patches.
Grid = tuple[int, int]


@flax.struct.dataclass
class VisionLayout:
    """Where each patch of a batch of pictures stands in the windowed sequence.

    The sequence of a row is its attention windows one after the other, each padded to a full window
    of `S / W` patches. So window attention is a reshape, and full attention a segment mask. The
    patches of one merged token are neighbours, as they are in the processor's order.

    Attributes:
      patch_index_BS: int32, which patch of the row (processor's order) stands here; -1 padding.
      image_BS: int32, which picture of the row it belongs to; -1 padding.
      hw_BS2: int32, its row and column in its picture.
      token_index_BM: int32, where merged token m (processor's order) stands, in units of one merged
        token; -1 padding.
      num_windows: W, static.
    """

    patch_index_BS: jax.Array
    image_BS: jax.Array
    hw_BS2: jax.Array
    token_index_BM: jax.Array
    num_windows: int = flax.struct.field(pytree_node=False)


def vision_layout(
    grids: Sequence[Sequence[Grid]],
    config: VisionConfig,
    *,
    num_windows: int | None = None,
    num_tokens: int | None = None,
) -> VisionLayout:
    """Lays out the pictures of each row.

    Args:
      grids: for each row the grids of its pictures, in order; a row may have none.
      config: the vision tower's dimensions.
      num_windows: W to pad to, so that pictures of many sizes share one compiled program; the
        batch's own largest when None.
      num_tokens: M to pad to, likewise.

    Raises:
      ValueError: a grid that does not divide into merged tokens, or a bucket that is too small.
    """
    rows = [_row_layout(row, config) for row in grids]
    windows = max([len(units) for units, _, _ in rows], default=0)
    tokens = max([len(token) for _, _, token in rows], default=0)
    windows = _bucket("attention windows", max(windows, 1), num_windows)
    tokens = _bucket("image tokens", max(tokens, 1), num_tokens)
    merge, side = config.spatial_merge_size, config.window_units
    unit_BU = np.full((len(rows), windows * side**2), -1, np.int32)
    image_BU = np.full_like(unit_BU, -1)
    rc_BU2 = np.zeros((*unit_BU.shape, 2), np.int32)
    token_index_BM = np.full((len(rows), tokens), -1, np.int32)
    for b, (units, where, token) in enumerate(rows):
        count = len(units) * side**2
        if count:
            unit_BU[b, :count] = np.concatenate(units)
            image_BU[b, :count], rc_BU2[b, :count] = where[:, 0], where[:, 1:]
        token_index_BM[b, : len(token)] = token
    k = np.arange(merge**2)
    patch_BUk = np.where(unit_BU[..., None] >= 0, unit_BU[..., None] * merge**2 + k, -1)
    inner_k2 = np.stack([k // merge, k % merge], axis=-1)
    hw_BUk2 = rc_BU2[:, :, None] * merge + inner_k2
    batch = len(rows)
    return VisionLayout(
        patch_index_BS=patch_BUk.reshape(batch, -1).astype(np.int32),
        image_BS=np.repeat(image_BU, merge**2, axis=1),
        hw_BS2=hw_BUk2.reshape(batch, -1, 2).astype(np.int32),
        token_index_BM=token_index_BM,
        num_windows=windows,
    )


def _row_layout(row: Sequence[Grid], config: VisionConfig):
    """Units of each window, (picture, row, column) of each slot, and the slot of each token."""
    merge, side = config.spatial_merge_size, config.window_units
    units, where = [], []
    first = 0
    for picture, (height, width) in enumerate(row):
        if height < merge or width < merge or height % merge or width % merge:
            raise ValueError(
                f"a picture of {height} x {width} patches does not divide into merged tokens of "
                f"{merge} x {merge}; resize it with the checkpoint's image processor"
            )
        rows, columns = height // merge, width // merge
        index = first + np.arange(rows * columns).reshape(rows, columns)
        first += rows * columns
        padded = np.full((-(-rows // side) * side, -(-columns // side) * side), -1, np.int64)
        padded[:rows, :columns] = index
        r, c = np.indices(padded.shape)
        slots = np.stack([padded, np.full_like(padded, picture), r, c])
        # [4, R, side, C, side] -> windows in raster order, slots in raster order inside each.
        slots = slots.reshape(4, padded.shape[0] // side, side, -1, side)
        slots = slots.transpose(1, 3, 2, 4, 0).reshape(-1, side**2, 4)
        units.extend(slots[..., 0])
        where.append(slots[..., 1:].reshape(-1, 3))
    where = np.concatenate(where) if where else np.zeros((0, 3), np.int64)
    flat = np.concatenate(units) if units else np.zeros(0, np.int64)
    where[flat < 0, 0] = -1
    token = np.zeros(first, np.int64)
    token[flat[flat >= 0]] = np.flatnonzero(flat >= 0)
    return units, where, token


def _bucket(what: str, needed: int, size: int | None) -> int:
    if size is None:
        return needed
    if needed > size:
        raise ValueError(
            f"the batch needs {needed} {what}, the bucket holds {size}; use a larger bucket or "
            "smaller pictures"
        )
    return size


def mrope_positions(
    tokens_BP: np.ndarray,
    mask_BP: np.ndarray,
    grids: Sequence[Sequence[Grid]],
    config: ModelConfig,
) -> tuple[np.ndarray, np.ndarray]:
    """Rotary positions of prompts with still pictures (M-RoPE, arXiv 2409.12191, section 2.1).

    Text counts up alike on the three axes. A picture's tokens share one temporal position and count
    rows and columns; the text after it goes on from the largest position so far.

    Args:
      tokens_BP: int32 tokens with the image placeholders already repeated.
      mask_BP: bool, padding on either side.
      grids: for each row the grids (in patches) of its pictures.
      config: names the placeholder.

    Returns:
      int32 positions [3, B, P] (1 at padding, as the published code has it), and int32 [B], the
      position of the first token after the prompt.

    Raises:
      ValueError: placeholders and pictures do not match.
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
                f"row {b} holds {is_image.sum()} image placeholders, its pictures {row} (patches) "
                f"need {expected}"
            )
        parts, start, position = [], 0, 0
        for height, width in row:
            height, width = height // merge, width // merge
            image = start + int(np.argmax(is_image[start:]))
            text = position + np.arange(image - start)
            parts.append(np.broadcast_to(text, (3, len(text))))
            position += image - start
            r, c = (axis.ravel() for axis in np.indices((height, width)))
            parts.append(position + np.stack([np.zeros_like(r), r, c]))
            position += max(height, width)
            start = image + height * width
        text = position + np.arange(len(tokens) - start)
        parts.append(np.broadcast_to(text, (3, len(text))))
        row_positions = np.concatenate(parts, axis=1)
        positions_3BP[:, b, mask_BP[b]] = row_positions
        next_position_B[b] = row_positions.max(initial=-1) + 1
    return positions_3BP, next_position_B
