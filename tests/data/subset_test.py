"""A choice of images is the same everywhere, and knows the images as their source does."""

from speciarl_jax.data import emoji
from speciarl_jax.data.subset import Subset


def test_a_subset_is_a_fixed_choice_in_the_order_of_its_source():
    source = [{"image": None, "image_id": i} for i in range(50)]
    ids = [row["image_id"] for row in Subset(source, 10, 1)]
    assert ids == sorted(ids) == [0, 1, 3, 7, 11, 17, 18, 20, 37, 44]
    assert set(ids) < {row["image_id"] for row in Subset(source, 20, 1)}
    assert ids != [row["image_id"] for row in Subset(source, 10, 2)]
    for count in (0, 50, 99):
        assert list(Subset(source, count, 1)) == source


def test_a_row_is_described_without_its_image():
    source = emoji.Source(split="held_out", difficulty="easy", image_size=24, seed=1)
    few = Subset(source, 3, 1)
    for i in range(len(few)):
        row = dict(few[i])
        assert row.pop("image").shape == (24, 24, 3) and row == few.describe(i)
