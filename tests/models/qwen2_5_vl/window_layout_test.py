"""Attention windows packed into slots, and bucket sizes."""

import math

import numpy as np
import pytest

from speciarl_jax.models.qwen2_5_vl import window_layout
from speciarl_jax.models.qwen2_5_vl.config import VisionConfig


def make_config(side=4):
    """Windows of `side` x `side` merged tokens."""
    return VisionConfig(
        depth=1,
        hidden_size=8,
        intermediate_size=8,
        num_heads=1,
        out_hidden_size=8,
        patch_size=14,
        window_size=28 * side,
        full_attention_layers=(0,),
    )


def random_grids(rng, rows, most=24):
    return [
        [tuple(2 * int(side) for side in rng.integers(1, most + 1, 2)) for _ in range(count)]
        for count in rng.integers(0, 4, rows)
    ]


def of_photo(height, width):
    """A photograph of so many pixels, as the published rule rounds it to patches."""
    return (2 * round(height / 28), 2 * round(width / 28))


@pytest.mark.parametrize("seed", range(12))
def test_every_patch_stands_once_and_every_window_whole_in_one_slot(seed):
    rng = np.random.default_rng(seed)
    config, grids = make_config(side=1 + seed % 4), random_grids(rng, 4)
    layout = window_layout.vision_layout(grids, config)
    slot_S = np.arange(layout.patch_index_BS.shape[1]) // (4 * config.window_units**2)
    for b, row in enumerate(grids):
        index_S, valid_S = layout.patch_index_BS[b], layout.patch_index_BS[b] >= 0
        patches = sum(h * w for h, w in row)
        assert sorted(index_S[valid_S]) == list(range(patches))
        # Which window a patch belongs to, worked out patch by patch from the definition.
        side = 2 * config.window_units
        firsts = np.cumsum([0, *(h * w for h, w in row)])
        members = {}
        for s in np.flatnonzero(valid_S):
            image = int(np.searchsorted(firsts, index_S[s], side="right")) - 1
            unit, k = divmod(int(index_S[s] - firsts[image]), 4)
            r, c = divmod(unit, row[image][1] // 2)
            r, c = 2 * r + k // 2, 2 * c + k % 2
            assert layout.image_BS[b, s] == image
            assert layout.hw_BS2[b, s].tolist() == [r, c]
            members.setdefault((image, r // side, c // side), []).append(s)
        assert len({layout.window_BS[b, s] for s in np.flatnonzero(valid_S)}) == len(members)
        for places in members.values():
            assert len({layout.window_BS[b, s] for s in places}) == 1
            assert len({slot_S[s] for s in places}) == 1
        for name in ("window_BS", "image_BS"):
            assert np.all(getattr(layout, name)[b, ~valid_S] == -1)
        tokens = layout.token_index_BM[b]
        assert np.array_equal(index_S[4 * tokens[tokens >= 0]], 4 * np.arange(patches // 4))


def test_whole_windows_keep_their_order_and_are_not_padded():
    config = make_config()
    layout = window_layout.vision_layout([[(16, 24)]], config)
    assert layout.num_windows == 2 * 3
    assert layout.window_BS[0].tolist() == np.repeat(np.arange(6), 64).tolist()
    assert (layout.patch_index_BS >= 0).all()


def test_photographs_leave_little_of_their_slots_empty():
    config = make_config()
    for pixels, slots, windows in (
        ((375, 500), 15, 20),  # 13 x 18 tokens
        ((500, 333), 14, 15),  # 18 x 12
        ((504, 504), 21, 25),  # 18 x 18
        ((700, 1000), 57, 63),  # 25 x 36
    ):
        grid = of_photo(*pixels)
        tokens = grid[0] * grid[1] // 4
        assert math.ceil(grid[0] / 8) * math.ceil(grid[1] / 8) == windows
        assert window_layout.vision_sizes([[grid]], config) == (slots, tokens)
        assert slots == math.ceil(tokens / 16)


@pytest.mark.parametrize("growth", [1.25, 1.5])
@pytest.mark.parametrize("multiple", [1, 8, 16])
def test_bucket_sizes_hold_what_is_needed_and_pad_less_than_a_step(growth, multiple):
    sizes = [window_layout.bucket(n, growth, multiple) for n in range(1, 3000)]
    for needed, size in enumerate(sizes, 1):
        assert size >= needed and size % multiple == 0
        assert size < growth * needed + 2 * multiple
    assert len(set(sizes)) < 4 + math.log(3000) / math.log(growth)
    assert sizes == sorted(sizes)
    assert window_layout.bucket(max(sizes), growth, multiple) == max(sizes)


def test_without_growth_sizes_are_exact():
    assert [window_layout.bucket(n, 1.0, 16) for n in (1, 17, 1000)] == [1, 17, 1000]
    assert window_layout.vision_sizes([[(6, 10)], [], [(2, 2), (4, 4)]], make_config()) == (1, 15)
    assert window_layout.vision_sizes([[]], make_config()) == (1, 1)


@pytest.mark.parametrize("side", [1, 2, 4])
def test_bucket_sizes_hold_their_batches_and_are_few(side):
    config, found = make_config(side), set()
    for seed in range(100):
        grids = random_grids(np.random.default_rng(seed), 3, most=16)
        windows, tokens = window_layout.vision_sizes(grids, config, growth=1.25)
        layout = window_layout.vision_layout(grids, config).pad(windows, tokens)
        assert layout.num_windows == windows and layout.token_index_BM.shape[1] == tokens
        found.add((windows, tokens))
    assert len(found) <= 16, sorted(found)
