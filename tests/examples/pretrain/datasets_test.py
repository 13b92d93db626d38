"""Images of pretraining: what augmentation changes, and that epochs differ and repeat."""

import ml_collections
import numpy as np
import pytest
from PIL import Image

from configs import own_folder_sft, quickstart_sft
from examples.pretrain import datasets

RNG = np.random.default_rng(0)
IMAGE = RNG.integers(0, 256, (32, 32, 3)).astype(np.uint8)


def test_nothing_is_changed_by_default():
    np.testing.assert_array_equal(datasets.Augmentation()(IMAGE, np.random.default_rng(0)), IMAGE)


@pytest.mark.parametrize("seed", range(5))
def test_shift_and_flip_move_pixels(seed):
    shifted = datasets.Augmentation(shift=3)(IMAGE, np.random.default_rng(seed))
    top, left = np.random.default_rng(seed).integers(0, 7, 2)
    rows, columns = (np.clip(np.arange(32) + at - 3, 0, 31) for at in (top, left))
    inside = np.ix_((rows == np.arange(32) + top - 3), (columns == np.arange(32) + left - 3))
    np.testing.assert_array_equal(shifted[inside], IMAGE[rows][:, columns][inside])
    flipped = datasets.Augmentation(flip=1.0)(IMAGE, np.random.default_rng(seed))
    np.testing.assert_array_equal(flipped, IMAGE[:, ::-1])


def test_a_square_is_cut_out_and_colours_move_within_bounds():
    cut = datasets.Augmentation(cutout=8)(IMAGE, np.random.default_rng(1))
    changed = np.any(cut != IMAGE, axis=-1)
    assert 16 <= changed.sum() <= 64 and np.all(cut[changed] == 128)
    grey = np.full((32, 32, 3), 100, np.uint8)
    values = [
        datasets.Augmentation(colour=0.3)(grey, np.random.default_rng(s))[0, 0] for s in range(50)
    ]
    assert np.min(values) >= 68 and np.max(values) <= 132 and np.ptp(values) > 30
    assert IMAGE.max() > 200  # the image itself is never written to


def test_epochs_differ_and_each_repeats_itself():
    config = quickstart_sft.get_config()
    with config.unlocked():
        config.data.augmentation = ml_collections.ConfigDict({"flip": 0.5, "shift": 2})
    data = datasets.DataSet(config, "answer_stage")
    first, again, other = data.epoch(3)[7], data.epoch(3)[7], data.epoch(4)[7]
    np.testing.assert_array_equal(first["image"], again["image"])
    assert np.any(first["image"] != other["image"])
    assert first["label_id"] == other["label_id"] and first["difficulty"] == again["difficulty"]
    assert {one.label_id for one in data.concepts} == set(data.label_tree["benchmark"])


@pytest.fixture
def photographs(tmp_path):
    """The configuration of a folder of photographs of two shapes, grey with a white middle."""
    for label in ("fruit/apple", "fruit/pear"):
        (tmp_path / label).mkdir(parents=True)
        for number, (width, height) in enumerate([(120, 80), (80, 120), (80, 80), (80, 81)]):
            pixels = np.full((height, width, 3), 100, np.uint8)
            pixels[height // 2 - 20 : height // 2 + 20, width // 2 - 20 : width // 2 + 20] = 255
            Image.fromarray(pixels).save(tmp_path / label / f"{number}.png")
    config = own_folder_sft.get_config()
    config.data.options.path = str(tmp_path)
    return config


def test_photographs_of_any_shape_are_cut_to_the_middle_and_halved(photographs):
    data = datasets.DataSet(photographs, "answer_stage")
    photographs.data.augmentation = ml_collections.ConfigDict()
    rows = [*data.open({}, 0), *data.open({"part": "held_out"}, 0)]
    assert len(data.open({}, 0)) == 4 and len({row["image_id"] for row in rows}) == 8
    for row in [*rows, data.epoch(1)[0]]:
        assert row["image"].shape == (64, 64, 3) and row["image"].dtype == np.uint8
    for row in rows:
        assert row["image"][32, 32, 0] == 255 and np.all(row["image"][:8] == 100)
    assert [(c.name, c.generic) for c in data.concepts] == [("apple", "fruit"), ("pear", "fruit")]


def test_images_of_another_size_are_refused_with_the_way_to_cut_them(photographs):
    photographs.data.crop = False
    with pytest.raises(ValueError, match="image_size is 64; .*config.data.crop=True"):
        datasets.DataSet(photographs, "answer_stage")
