"""Images of pretraining: what augmentation changes, and that epochs differ and repeat."""

import ml_collections
import numpy as np
import pytest

from configs import quickstart_sft
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
