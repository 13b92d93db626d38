"""Folders with splits on top: used as such, never as labels, and refused where unclear."""

import pytest
from own_images import draw, open_folder
from PIL import Image

from speciarl_jax.data import splits


def read(root, part="training", **options):
    return sorted(row["key"] for row in open_folder(root, part=part, **options))


def labels(root, **options):
    return {row["label"] for row in open_folder(root, **options)}


LAYOUTS = {
    "plain": ("train/{}", "val/{}", "test/{}"),
    "capitals": ("Train/{}", "Valid/{}", "TEST/{}"),
    "sets": ("training_set/{}", "validation_set/{}", "test_set/{}"),
    "within images": ("images/train/{}", "images/val/{}", "images/test/{}"),
    "images within": ("train/images/{}", "validation/images/{}", "test/images/{}"),
    "twice": ("seg_train/seg_train/{}", "seg_val/seg_val/{}", "seg_test/seg_test/{}"),
    "years": ("train2017/{}", "val2017/{}", "test2017/{}"),
    "below the label": ("{}/train", "{}/val", "{}/test"),
    "in an archive": ("archive/train/{}", "archive/validate/{}", "archive/test/{}"),
    "deeper in archives": ("a/b/Train/{}", "a/b/Dev/{}", "a/b/Test/{}"),
    "by one letter": ("trainA/{}", "valA/{}", "testA/{}"),
    "by one word": ("x/train_mini/{}", "x/val_mini/{}", "x/test_mini/{}"),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_training_reads_train_and_evaluation_reads_val(tmp_path, layout, caplog):
    caplog.set_level("INFO")
    train, val, test = (place.format("{}") for place in LAYOUTS[layout])
    names = {
        split: [f"{place.format(label)}/1.png" for label in ("fruit/pear", "fruit/kiwi")]
        for split, place in (("train", train), ("val", val), ("test", test))
    }
    root = draw(tmp_path, *sum(names.values(), []))
    assert read(root) == sorted(names["train"])
    assert read(root, "held_out") == sorted(names["val"])
    assert read(root, "all") == sorted(sum(names.values(), []))
    assert labels(root, part="all") == {"pear", "kiwi"}
    leaf = open_folder(root).label_tree["leaves"]["fruit/pear"]
    assert (leaf["generic"], leaf["ancestors"]) == ("fruit", [])
    assert "has the splits" in caplog.text and "part 'held_out' reads" in caplog.text


def test_evaluation_takes_test_where_there_is_no_val_and_a_named_split_in_any_case(tmp_path):
    root = draw(tmp_path, "train/a/1.png", "test/a/2.png", "test/b/3.png")
    assert read(root, "held_out") == ["test/a/2.png", "test/b/3.png"]
    assert read(root, "held_out", split="train") == ["train/a/1.png"]
    with pytest.raises(ValueError, match="split .* is 'val'; choose one of .'test', 'train'."):
        open_folder(root, split="val")
    only = draw(tmp_path / "only", "test/a/1.png", "val/a/2.png")
    with pytest.raises(ValueError, match="none for training"):
        open_folder(only, part="training")


def test_a_part_of_train_is_held_out_where_it_is_the_only_split(tmp_path):
    root = draw(tmp_path, *(f"train/{label}/{i}.png" for label in "ab" for i in range(6)))
    training, held_out = read(root), read(root, "held_out")
    assert len(held_out) == 2 and sorted(training + held_out) == read(root, "all")


@pytest.mark.parametrize(
    "names",
    [
        ("train/1.png", "bus/1.png", "car/1.png"),
        ("train/a/1.png", "test/a/1.png", "extra/a/1.png"),
        ("train/a/1.png", "training/a/2.png"),
        ("train/a/1.png", "valid/a/1.png", "val/a/1.png"),
        ("a/train/1.png", "a/test/1.png", "b/1.png"),
        ("cats_train/1.png", "cats_test/2.png", "dogs_train/3.png", "dogs_test/4.png"),
        ("pets/train/a/1.png", "pets/test/a/2.png", "pets/a/3.png"),
        ("a/train/x/1.png", "a/test/x/2.png", "b/x/3.png"),
    ],
)
def test_what_is_unclear_is_refused_with_the_option(tmp_path, names):
    root = draw(tmp_path, *names)
    with pytest.raises(ValueError, match=r"config.data.options.split"):
        open_folder(root, part="training")
    assert len(open_folder(root, split="none")) == len(names)


def test_a_folder_around_train_alone_is_no_name(tmp_path, caplog):
    caplog.set_level("INFO")
    root = draw(tmp_path, *(f"pets/train/{label}/{i}.png" for label in "ab" for i in range(4)))
    assert set(open_folder(root).label_tree["leaves"]) == {"a", "b"}
    assert "the splits lie in 'pets', which is taken for no name" in caplog.text


def test_splits_may_lie_between_the_names(tmp_path):
    root = draw(tmp_path, "bird/train/eagle/1.png", "bird/test/eagle/2.png", "fish/train/ray/3.png")
    assert read(root) == ["bird/train/eagle/1.png", "fish/train/ray/3.png"]
    assert set(open_folder(root).label_tree["leaves"]) == {"bird/eagle", "fish/ray"}
    assert read(root, "held_out") == ["bird/test/eagle/2.png"]


def test_images_without_a_label_are_passed_over_in_a_split_that_is_not_read(tmp_path, caplog):
    root = draw(tmp_path, "train/a/1.png", "val/a/2.png", "test/3.png")
    assert read(root) == ["train/a/1.png"] and read(root, "held_out") == ["val/a/2.png"]
    assert "passed over 1 images that lie in no label's folder (test/3.png" in caplog.text
    with pytest.raises(ValueError, match="1 images outside of a label's folder .'test/3.png'"):
        open_folder(root, split="test")


def test_folders_that_hold_the_same_labels_are_reported(tmp_path, caplog):
    names = ("photo/cat/1.png", "sketch/cat/2.png", "photo/dog/3.png", "sketch/dog/4.png")
    open_folder(draw(tmp_path / "a", *names))
    assert "the same labels (cat, ...) lie in 'photo', 'sketch'" in caplog.text
    caplog.clear()
    open_folder(
        draw(tmp_path / "b", "bird/owl/1.png", "toy/owl/2.png", "toy/car/3.png", "a/b/4.png")
    )
    assert "the same labels" not in caplog.text


def test_a_label_may_be_called_like_a_split_among_other_labels(tmp_path):
    root = draw(tmp_path, "vehicle/train/1.png", "vehicle/bus/1.png", "animal/cat/1.png")
    assert labels(root) == {"train", "bus", "cat"}


def test_folders_of_storage_systems_are_no_labels(tmp_path):
    names = ("@eaDir/rose/1.png", "rose/@eaDir/2.png", "__MACOSX/3.png", ".cache/x/4.png")
    root = draw(tmp_path, *names, "rose/5.png", "#recycle/rose/6.png")
    assert read(root, "all") == ["rose/5.png"]


def test_images_of_a_split_without_a_label_are_refused(tmp_path):
    root = draw(tmp_path, "train/1.png", "test/2.png")
    with pytest.raises(ValueError, match="2 images outside of a label's folder"):
        open_folder(root)


def test_a_label_at_another_depth_in_another_split_is_the_same_label(tmp_path, caplog):
    names = (
        "train/veg/mushroom/brown-cap/1.png",
        "val/veg/brown-cap/2.png",
        "train/veg/leek/3.png",
    )
    root = draw(tmp_path, *names)
    source = open_folder(root, part="held_out")
    assert source[0]["label_id"] == "veg/mushroom/brown-cap" and "taken as one" in caplog.text
    assert set(source.label_tree["leaves"]) == {"veg/mushroom/brown-cap", "veg/leek"}
    # In one split both are there, so they are two labels.
    both = draw(tmp_path / "both", "train/a/x/1.png", "train/a/b/x/2.png", "val/a/x/3.png")
    assert open_folder(both, part="held_out")[0]["label_id"] == "a/x"


@pytest.mark.parametrize(
    "name, kind",
    [("train", "training"), ("Test_Set", "test"), ("val2017", "validation"), ("dev", "validation")]
    + [("trainImages", "training"), ("test tube", None), ("valley", None), ("images", None)]
    + [("high speed train", None), ("train station", None), ("data", None)],
)
def test_names_of_splits(name, kind):
    assert splits.kind_of(name) == kind


def test_formats_are_read_by_name_and_the_rest_is_named_and_counted(tmp_path, caplog):
    caplog.set_level("INFO")
    root = tmp_path / "rose"
    root.mkdir()
    for suffix in ("avif", "jp2", "ppm", "PGM", "webp"):
        Image.new("RGB", (8, 6), (9, 40, 90)).save(root / f"1.{suffix}")
    for name in ("a.jxl", "b.jxl", "c.mp4", "notes.txt", "README"):
        (root / name).write_bytes(b"x")
    source = open_folder(tmp_path)
    assert [row["image"].shape for row in source] == [(6, 8, 3)] * 5
    said = "passed over 2 .jxl, 1 .mp4, 1 .txt, 1 no ending"
    assert said in caplog.text


def test_pipes_are_passed_over_and_never_opened(tmp_path, caplog):
    import os

    caplog.set_level("INFO")
    root = draw(tmp_path, "rose/1.png")
    os.mkfifo(root / "rose/2.png")
    assert len(open_folder(root)) == 1 and "1 pipe or device" in caplog.text
