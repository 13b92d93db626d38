"""The laboratory of photographs: its splits and designs, and the files that it reads."""

import io
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

import configs
from configs import unlabelled
from speciarl_jax.data import cifar100, label_tree, tfds_images

CLASSES = sorted(name for classes in cifar100.SUPERCLASSES.values() for name in classes)


def image(number):
    file = io.BytesIO()
    Image.new("RGB", (32, 32), (number, 255 - number, 0)).save(file, "PNG")
    return file.getvalue()


def write(path, each, image_column="image", label_column="label", names=CLASSES):
    """Writes `each` images of every class, one colour a class, in a mixed order."""
    order = np.random.default_rng(0).permutation(np.repeat(np.arange(len(names)), each))
    encoded = pa.array([image(number) for number in range(len(names))])
    columns = {
        image_column: encoded.take(pa.array(order)),
        label_column: pa.array(names).take(pa.array(order)),
    }
    pq.write_table(pa.table(columns), path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cifar100")
    write(folder / "cifar100_train.parquet", 500, names=[n.replace("_", " ") for n in CLASSES])
    # The Hub misspells a class.
    hub = ["cra" if name == "crab" else name for name in CLASSES]
    write(folder / "test-00000-of-00001.parquet", 100, "img", "fine_label", hub)
    return folder


def source(folder, split, **options):
    return cifar100.Source(split=split, seed=0, path=str(folder), **options)


def keys(found):
    return {entry.key for entry in found.entries}


def test_the_splits_part_the_training_set_and_every_class_is_in_each(folder):
    parts = [source(folder, split) for split in cifar100.SPLITS]
    assert [len(part) for part in parts] == [39_000, 8_000, 3_000]
    assert set.union(*map(keys, parts)) == keys(source(folder, "train"))
    for part in parts:
        counts = np.unique([entry.label_id for entry in part.entries], return_counts=True)[1]
        assert len(counts) == 100 and len(set(counts)) == 1
    test = source(folder, "test")
    assert len(test) == 10_000 and {e.label_id for e in test.entries} == {
        f"cifar100/{name}" for name in CLASSES
    }


@pytest.mark.parametrize("design, inside", [("broad", 75), ("narrow", 45)])
def test_the_two_sides_of_a_design_share_no_class_and_hold_all(folder, design, inside):
    one, other = (source(folder, "test", design=design, side=side) for side in cifar100.SIDES)
    labels = [{entry.label_id for entry in side.entries} for side in (one, other)]
    assert len(labels[0]) == inside and len(labels[0] | labels[1]) == 100
    assert not labels[0] & labels[1] and len(one) + len(other) == 10_000
    # The paper's amount of reinforcement, balanced.
    chosen = source(folder, "reinforcement", design=design, subset=3000)
    assert len(chosen) == 3000 and {e.label_id for e in chosen.entries} == labels[0]


def test_an_image_and_its_label_stay_together(folder):
    found = source(folder, "validation", superclasses=("fish", "trees"))
    for index in (0, 17, len(found) - 1):
        row = found[index]
        number = CLASSES.index(row["label_id"].removeprefix("cifar100/"))
        assert row["image"].shape == (32, 32, 3)
        np.testing.assert_array_equal(row["image"][3, 5], [number, 255 - number, 0])
    assert {row.label for row in found.entries} == {
        name.replace("_", " ")
        for superclass in ("fish", "trees")
        for name in cifar100.SUPERCLASSES[superclass]
    }
    # Another superclass's names are still known to the verifier.
    assert len(label_tree.read(found)["leaves"]) == 100


def test_one_word_holds_for_the_narrow_design_and_none_for_the_broad_one():
    leaves = json.loads((tfds_images.TREES / "cifar100.json").read_text())["leaves"]

    def groups(superclasses):
        names = [name for one in superclasses for name in cifar100.SUPERCLASSES[one]]
        return {leaves[f"cifar100/{name}"]["generic"] for name in names}

    assert groups(cifar100.DESIGNS["narrow"]) == {"animal"}
    assert len(groups(cifar100.DESIGNS["broad"])) > 5
    assert list(leaves) == [f"cifar100/{name}" for name in CLASSES]


def test_superclasses_may_be_listed_without_their_labels(folder):
    """Those with labels are the same as without the others, but for a few of the last rank."""
    config = configs.load("unlabelled:0.7")
    options = config.data.options.to_dict() | {"path": str(folder)}
    found = cifar100.Source(seed=0, **options)
    labelled, hidden = {}, 0
    for entry, row in ((found.entries[i], found.describe(i)) for i in range(len(found))):
        if row.get("unlabelled"):
            hidden += 1
            assert row["label"] == row["label_id"] == row["generic"] == ""
        else:
            labelled[entry.key] = row["label_id"]
    narrow = source(folder, "reinforcement", design="narrow", subset=3000)
    assert len(keys(narrow) & set(labelled)) > 2950 and abs(len(labelled) - 3000) < 45
    assert hidden == len(found) - len(labelled)
    superclasses = {*cifar100.DESIGNS["narrow"], *found.unlabelled, *unlabelled.UNSEEN}
    assert superclasses == set(cifar100.SUPERCLASSES)
    # To compare with: the same images, all of them with labels.
    options = configs.load("unlabelled:labelled:0.7").data.options.to_dict()
    known = cifar100.Source(seed=0, **options | {"path": str(folder)})
    assert [entry.key for entry in known.entries] == [entry.key for entry in found.entries]
    assert all(known.describe(i)["label"] for i in range(len(known)))


@pytest.mark.parametrize(
    "options, said",
    [
        ({"split": "held_out"}, "split is 'held_out'; choose one of"),
        ({"design": "wild"}, "design is 'wild' and side 'in_domain'; choose one of"),
        ({"design": "broad", "side": "out"}, "side 'out'; choose one of"),
        ({"design": "broad", "superclasses": ("fish",)}, "give one of the two"),
        ({"superclasses": ("fishes",)}, r"superclasses \['fishes'\] are unknown"),
        ({"superclasses": ("fish",), "unlabelled": ("trees", "fish")}, "'shark', 'trout'.* none"),
        ({"design": "narrow", "unlabelled": ("tree",)}, r"superclasses \['tree'\] are unknown"),
    ],
)
def test_unknown_names_are_refused(folder, options, said):
    with pytest.raises(ValueError, match=said):
        source(folder, **{"split": "test"} | options)


def test_files_that_hold_something_else_are_refused(tmp_path):
    with pytest.raises(ValueError, match="has no Parquet file with 'test' in its name"):
        source(tmp_path, "test")
    write(tmp_path / "test.parquet", 99)
    with pytest.raises(ValueError, match="has 9900 images of 100 classes .* has 100 of each"):
        source(tmp_path, "test")
    write(tmp_path / "test.parquet", 1, names=[*CLASSES[:99], "zebra"])
    with pytest.raises(ValueError, match="'zebra' is no class of CIFAR-100"):
        source(tmp_path, "test")
    write(tmp_path / "test.parquet", 1, label_column="kind")
    with pytest.raises(ValueError, match="has no column 'label'"):
        source(tmp_path, "test")


def test_what_was_not_prepared_says_how(tmp_path):
    with pytest.raises(ValueError, match="prepare_data --dataset=cifar100"):
        cifar100.Source(split="test", seed=0, data_dir=str(tmp_path))
