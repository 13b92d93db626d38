"""Augmentation: seeded, of the difficulty it is named after, and never of another shape."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from speciarl_jax.data import augment, emoji

DRAWINGS = emoji._atlas("twemoji")[::60]


def compose(drawing, seed, params, size=48):
    return augment.compose(drawing, np.random.default_rng(seed), params, size)


def shown(params, size=48):
    """Every drawing in three images, float [images, size, size, 3]."""
    images = [compose(d, s, params, size) for d in DRAWINGS for s in range(3)]
    return np.stack(images).astype(np.float32)


@pytest.mark.parametrize("difficulty", augment.DIFFICULTIES)
def test_the_same_seed_gives_the_same_image(difficulty):
    def draw(seed):
        rng = np.random.default_rng(seed)
        level, params = augment.parameters(difficulty, rng)
        return level, augment.compose(DRAWINGS[0], rng, params, 48)

    (level, one), (again, two) = draw(7), draw(7)
    assert level == again
    np.testing.assert_array_equal(one, two)
    if difficulty != "clean":
        assert not np.array_equal(one, draw(8)[1])


def test_levels_move_further_and_further_from_the_clean_image():
    clean = shown(augment.LEVELS["clean"])
    distance = {
        name: np.abs(shown(params) - clean).mean() for name, params in augment.LEVELS.items()
    }
    assert distance["clean"] == 0
    assert 1 < distance["easy"] < distance["moderate"] < distance["hard"]


def test_levels_are_ordered_in_the_detail_they_keep():
    def detail(params):
        params = dataclasses.replace(params, background="white", occlusion=(0.0, 0.0))
        images = shown(params)
        return np.abs(np.diff(images, axis=1)).mean()

    kept = [detail(augment.LEVELS[name]) for name in ("clean", "moderate", "hard")]
    assert kept[0] > 1.3 * kept[1] > 1.3 * kept[2]


def test_a_clean_image_is_the_drawing_on_white():
    drawing = np.random.default_rng(0).integers(0, 256, (64, 64, 4), np.uint8)
    drawing[..., 3] = 0
    drawing[8:40, 20:60, 3] = 255
    image = compose(drawing, 0, augment.AugmentParams(scale=(1.0, 1.0)), 64)
    solid = drawing[..., 3] == 255
    np.testing.assert_array_equal(image[solid], drawing[solid, :3])
    assert np.all(image[~solid] == 255)


@pytest.mark.parametrize("share", [0.1, 0.25, 0.5])
def test_occlusion_covers_the_share_that_was_asked_for(share):
    plain = augment.AugmentParams()
    covered = []
    for seed in range(20):
        clean = compose(DRAWINGS[1], seed, plain)
        hidden = compose(DRAWINGS[1], seed, dataclasses.replace(plain, occlusion=(share, share)))
        covered.append(np.any(clean != hidden, axis=-1).mean())
    # The last block overshoots by less than its own size, a ninth of the image.
    assert share - 0.02 < min(covered) and max(covered) < share + 1 / 9
    assert abs(np.mean(covered) - share) < 0.06


def test_transparent_colours_do_not_bleed():
    green = np.zeros((64, 64, 4), np.uint8)
    green[..., 1] = 255  # of no weight where alpha is 0
    green[20:40, 20:40] = (200, 0, 0, 255)
    turned = augment.AugmentParams(scale=(0.7, 0.7), rotation=25)
    for seed in range(5):
        image = compose(green, seed, turned).astype(int)
        assert np.all(image[..., 1] <= image[..., 0])


def test_an_edge_mixes_the_drawing_and_the_ground():
    drawing = np.zeros((64, 64, 4), np.uint8)
    drawing[16:48, 16:48] = (200, 100, 0, 255)
    turned = augment.AugmentParams(scale=(0.7, 0.7), rotation=25)
    image = compose(drawing, 1, turned).astype(float)
    share = (255 - image[..., 1]) / 155  # of the drawing, by the green channel; white elsewhere
    assert np.any((share > 0.3) & (share < 0.7))
    np.testing.assert_allclose(image[..., 0], 255 - 55 * share, atol=3)
    np.testing.assert_allclose(image[..., 2], 255 - 255 * share, atol=3)


def test_flip_mirrors_the_drawing():
    plain, flipped = augment.AugmentParams(), augment.AugmentParams(flip=1.0)
    one, two = compose(DRAWINGS[2], 0, plain), compose(DRAWINGS[2][:, ::-1], 0, flipped)
    np.testing.assert_array_equal(one, two)


def test_mixed_draws_its_levels_by_their_shares():
    rng = np.random.default_rng(0)
    names = [augment.parameters("mixed", rng)[0] for _ in range(2000)]
    assert np.isclose(sum(augment.MIXED.values()), 1)
    for name, share in augment.MIXED.items():
        assert abs(names.count(name) / len(names) - share) < 0.05


def test_an_unknown_difficulty_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match="'extreme' is unknown.*clean.*easy.*moderate.*hard"):
        augment.parameters("extreme", np.random.default_rng(0))


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 2**32 - 1),
    st.sampled_from(augment.DIFFICULTIES),
    st.integers(8, 96),
    st.integers(0, len(DRAWINGS) - 1),
)
def test_an_image_is_always_uint8_of_the_size_asked_for(seed, difficulty, size, which):
    rng = np.random.default_rng(seed)
    _, params = augment.parameters(difficulty, rng)
    drawing = DRAWINGS[which].copy()
    image = augment.compose(drawing, rng, params, size)
    assert image.dtype == np.uint8 and image.shape == (size, size, 3)
    np.testing.assert_array_equal(drawing, DRAWINGS[which])  # the sheet is left as it was
