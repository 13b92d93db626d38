"""Attention windows of images, on the host: numpy, from sizes only and never from pixels."""

import functools
import math
from collections.abc import Sequence
from typing import NamedTuple

import flax.struct
import jax
import numpy as np

from speciarl_jax.models.image_tokens import Grid, bucket, check_grid, pad_columns, token_bucket
from speciarl_jax.models.qwen2_5_vl.config import VisionConfig


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

    @property
    def sizes(self) -> tuple[int, int]:
        """Number of slots W and of image tokens M, which decide which compiled program runs."""
        return self.num_windows, self.token_index_BM.shape[1]

    def pad(self, num_windows: int, num_tokens: int) -> "VisionLayout":
        """Pads numpy arrays, so that images of many sizes share a compiled program.

        Args:
          num_windows: W to pad to, at least its own.
          num_tokens: M to pad to, likewise.
        """
        tokens = self.token_index_BM.shape[1]
        per_slot = self.patch_index_BS.shape[1] // self.num_windows
        slots = (num_windows - self.num_windows) * per_slot
        return VisionLayout(
            patch_index_BS=pad_columns(self.patch_index_BS, slots),
            image_BS=pad_columns(self.image_BS, slots),
            window_BS=pad_columns(self.window_BS, slots),
            hw_BS2=pad_columns(self.hw_BS2, slots, 0),
            token_index_BM=pad_columns(self.token_index_BM, num_tokens - tokens),
            num_windows=num_windows,
        )


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
    tokens = token_bucket(max([1, *(len(row.place_M) for row in rows)]), growth)
    windows = max([1, *(row.slots for row in rows)])
    if growth > 1:
        # So many tokens mostly fill `full` windows; small ones that do not pack well need more.
        full = math.ceil(tokens / config.window_units**2)
        windows = full if windows <= full else full + bucket(windows - full, growth, full // 4)
    return windows, tokens


@functools.lru_cache(maxsize=1024)
def _row_layout(row: tuple[Grid, ...], config: VisionConfig) -> _Row:
    merge, side = config.spatial_merge_size, config.window_units
    image, window, rank, rc = ([np.zeros((0, *end), np.int64)] for end in ((), (), (), (2,)))
    windows = 0
    for number, (height, width) in enumerate(row):
        check_grid(height, width, merge)
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
