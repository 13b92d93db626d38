"""Where patches stand, against the order of the image processor, and what padding changes."""

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from speciarl_jax.models.qwen3_vl import layout as layout_lib
from speciarl_jax.models.qwen3_vl.config import VisionConfig
from speciarl_jax.models.qwen3_vl.vision import VisionEncoder

CONFIG = VisionConfig(
    depth=2,
    hidden_size=16,
    intermediate_size=24,
    num_heads=2,
    out_hidden_size=12,
    patch_size=2,
    num_position_embeddings=25,
    deepstack_layers=(0, 1),
)
GRIDS = [[(4, 6), (2, 2)], [(6, 4)], []]


def test_patches_of_a_merged_token_are_neighbours():
    layout = layout_lib.vision_layout([[(4, 6)]], CONFIG)
    places = [tuple(hw) for hw in layout.hw_BS2[0].tolist()]
    assert places[:4] == [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert places[4:8] == [(0, 2), (0, 3), (1, 2), (1, 3)]
    assert places[12:14] == [(2, 0), (2, 1)] and sorted(places) == sorted(set(places))
    assert layout.sizes == (6, 6) and (layout.grid_BS2 == (4, 6)).all()


def test_rows_are_padded_to_the_largest():
    layout = layout_lib.vision_layout(GRIDS, CONFIG)
    assert layout.sizes == (7, 7)
    assert (layout.patch_index_BS >= 0).sum(axis=1).tolist() == [28, 24, 0]
    assert (layout.token_index_BM >= 0).sum(axis=1).tolist() == [7, 6, 0]
    assert layout.image_BS[0].tolist() == [0] * 24 + [1] * 4
    assert layout.grid_BS2.min() == 1


def test_bucket_sizes_hold_their_batches_and_are_few():
    rng, found = np.random.default_rng(0), set()
    for _ in range(200):
        grid = tuple(2 * int(side) for side in rng.integers(1, 17, 2))
        slots, tokens = layout_lib.vision_sizes([[grid]], CONFIG, growth=1.25)
        assert slots == tokens >= grid[0] * grid[1] // 4
        assert layout_lib.vision_layout([[grid]], CONFIG).pad(slots, tokens).sizes == (
            slots,
            tokens,
        )
        found.add(tokens)
    assert len(found) <= 16, sorted(found)


@pytest.mark.slow
def test_larger_buckets_change_no_number():
    encoder = VisionEncoder(CONFIG, dtype=jnp.float32, param_dtype=jnp.float32, rngs=nnx.Rngs(0))
    patches = np.random.default_rng(0).normal(size=(3, 28, CONFIG.patch_dim)).astype(np.float32)
    layout = layout_lib.vision_layout(GRIDS, CONFIG)
    tight, roomy = encoder(patches, layout), encoder(patches, layout.pad(11, 11))
    assert tight.shape == (3, 7, 36) and roomy.shape == (3, 11, 36)
    np.testing.assert_allclose(roomy[:, :7], tight, atol=1e-5)
    assert not np.asarray(roomy[:, 7:]).any() and np.asarray(tight[0]).any()


def test_a_grid_that_does_not_divide_into_merged_tokens_is_refused():
    with pytest.raises(ValueError, match="5 x 8 patches"):
        layout_lib.vision_layout([[(5, 8)]], CONFIG)
    with pytest.raises(ValueError, match="8 merged tokens has no 9"):
        layout_lib.vision_layout(GRIDS, CONFIG).pad(8, 9)
