"""The real builders on small archives in the official layouts, and reading what they wrote."""

import dataclasses
import importlib.util
import json
import sys

import archives
import numpy as np
import pytest

from speciarl_jax.data import images, tfds_images
from speciarl_jax.tools import prepare_data
from speciarl_jax.verifiers.taxonomy import Taxonomy

HAS_TENSORFLOW = importlib.util.find_spec("tensorflow") and importlib.util.find_spec("cv2")


@pytest.fixture(scope="module")
def prepared(tmp_path_factory, start):
    """Data set -> (folder of the prepared data, what the archives hold)."""
    folder = tmp_path_factory.mktemp("prepared")
    wanted = {name: archives.write(name, folder / "archives" / name) for name in archives.WRITERS}
    names = [n for n in wanted if HAS_TENSORFLOW or n in archives.NO_TENSORFLOW]
    program = archives.__file__
    process = start(program, folder / "archives", folder / "data", *names)
    printed, _ = process.communicate(timeout=600)
    assert process.returncode == 0, printed
    return {name: (str(folder / "data"), wanted[name]) for name in names}


@pytest.fixture(params=sorted(archives.WRITERS))
def one(request, prepared):
    if request.param not in prepared:
        pytest.skip("preparing it needs tensorflow-cpu and opencv-python-headless")
    return request.param, *prepared[request.param]


def open_split(dataset, data, split, **options):
    return tfds_images.Source(
        dataset=dataset, split=split, seed=0, data_dir=data, check_sizes=False, **options
    )


def test_every_image_comes_back_with_its_name_and_label(one):
    dataset, data, wanted = one
    sources = {split: open_split(dataset, data, split) for split in wanted}
    tree = next(iter(sources.values())).label_tree
    taxonomy = Taxonomy(tree)
    for split, rows in wanted.items():
        source = sources[split]
        assert len(source) == len(rows) and source.label_tree == tree
        seen = set()
        for index, row in enumerate(source):
            name = next(n for n in rows if n in row["key"])
            seen.add(name)
            seed, label = rows[name]
            assert row["label"] == label
            assert taxonomy.category(label, row["label_id"]).name == "SPECIFIC"
            if seed is not None:
                height = 60 if dataset == "fgvc_aircraft" else 36
                image = images.decode(archives.image(seed, height, 52), "")
                # The banner below an aircraft is cut off.
                image = image[:40] if dataset == "fgvc_aircraft" else image
                np.testing.assert_array_equal(row["image"], image)
            assert source.describe(index) == {k: v for k, v in row.items() if k != "image"}
            json.dumps(source.describe(index))
        assert seen == set(rows)


def test_the_sizes_of_the_published_set_are_checked(one):
    dataset, data, wanted = one
    published = tfds_images.PUBLISHED[dataset].sizes["train"]
    message = f"has {len(wanted['train'])} images in 'train', the published set {published}"
    with pytest.raises(ValueError, match=message):
        tfds_images.Source(dataset=dataset, split="train", seed=0, data_dir=data)


def test_an_unknown_split_is_refused_with_the_known_ones(one):
    dataset, data, _ = one
    with pytest.raises(ValueError, match="no split 'dev'; choose one of .*'test'.*'train'"):
        open_split(dataset, data, "dev")


def test_the_index_beside_the_records_changes_nothing(prepared):
    data, wanted = prepared["food101"]
    first = open_split("food101", data, "train")
    kept = list((tfds_images.make_builder("food101", data).data_path).glob("speciarl_index_*"))
    assert kept
    again = open_split("food101", data, "train")
    assert again.entries == first.entries and again.fingerprint == first.fingerprint
    content = json.loads((kept[0].parent / "speciarl_index_train.json").read_text())
    content["shards"][0][1] += 1
    (kept[0].parent / "speciarl_index_train.json").write_text(json.dumps(content | {"rows": []}))
    assert open_split("food101", data, "train").entries == first.entries


def test_the_images_of_a_split_file_are_taken_from_all_splits(prepared, tmp_path):
    data, wanted = prepared["food101"]
    path = tmp_path / "split_zhou_Food101.json"
    rows = [["pho/3.jpg", 1, "pho"], ["apple_pie/4.jpg", 0, "apple pie"]]
    path.write_text(json.dumps({"train": [], "test": rows}))
    found = open_split("food101", data, "test", split_file=str(path))
    assert [row["key"] for row in found] == ["pho/3", "apple_pie/4"]
    assert [row["label"] for row in found] == ["pho", "apple pie"]
    for seed, row in zip((3, 4), found, strict=True):
        np.testing.assert_array_equal(row["image"], images.decode(archives.image(seed), ""))
    published = tfds_images.PUBLISHED["food101"]
    sizes = {published.aliases.get(split, split): len(names) for split, names in wanted.items()}
    with pytest.MonkeyPatch.context() as patch:
        whole = dataclasses.replace(published, sizes=sizes)
        patch.setitem(tfds_images.PUBLISHED, "food101", whole)
        options = {"dataset": "food101", "data_dir": data, "split_file": str(path)}
        with pytest.raises(ValueError, match="has 2 images in 'test', CoOp's .* food101 30300"):
            tfds_images.Source(split="test", seed=0, **options)
    path.write_text(json.dumps({"test": [["pho/9.jpg", 1, "pho"]]}))
    with pytest.raises(ValueError, match="names 1 images that the data set has not.*pho/9"):
        open_split("food101", data, "test", split_file=str(path))
    with pytest.raises(ValueError, match="holds no split 'val'"):
        open_split("food101", data, "val", split_file=str(path))


def test_the_aircraft_are_judged_by_the_shipped_tree(prepared):
    data, _ = prepared["fgvc_aircraft"]
    taxonomy = Taxonomy(open_split("fgvc_aircraft", data, "train").label_tree)
    for said, verdict in {
        "737-200": "SPECIFIC",
        "Boeing 737-200": "SPECIFIC",
        "Boeing 737": "LESS_SPECIFIC",
        "Boeing": "LESS_SPECIFIC",
        "airplane": "GENERIC",
        "Airbus": "WRONG",
        "A320": "WRONG",
    }.items():
        assert taxonomy.category(said, "fgvc_aircraft/737-200").name == verdict, said
    assert taxonomy.category("FA-18", "fgvc_aircraft/F/A-18").name == "SPECIFIC"


def test_preparing_needs_no_tensorflow_where_it_says_so(prepared, tmp_path, start):
    archives.write("fgvc_aircraft", tmp_path / "archives" / "fgvc_aircraft")
    run = (
        "import runpy, sys; sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name="
        "'__main__'); assert 'tensorflow' not in sys.modules"
    )
    process = start(
        "-c", run, archives.__file__, tmp_path / "archives", tmp_path / "data", "fgvc_aircraft"
    )
    printed, _ = process.communicate(timeout=300)
    assert process.returncode == 0, printed
    assert len(open_split("fgvc_aircraft", str(tmp_path / "data"), "train")) == 2


def test_what_was_not_prepared_is_refused_with_the_command(tmp_path):
    with pytest.raises(
        ValueError, match=r"speciarl_jax.tools.prepare_data --dataset=food101 --data_dir=.+"
    ):
        open_split("food101", str(tmp_path), "train")
    with pytest.raises(ValueError, match="dataset is 'birds'; choose one of .*caltech_birds2011"):
        open_split("birds", str(tmp_path), "train")


def damaged(folder, how):
    archives.write("fgvc_aircraft", folder)
    path = folder / "fgvc-aircraft-2013b.tar.gz"
    if how == "missing":
        path.unlink()
    elif how == "cut":
        path.write_bytes(path.read_bytes()[:-2000])
    else:
        rows = {k: list(v) for k, v in archives.AIRCRAFT.items()}
        changed = dict(archives.AIRCRAFT)
        if how == "family":
            changed["test"] = [("4", "737-200", "Boeing 747", "Boeing")]
        elif how == "number":
            changed["test"] = [("", "A320", "A320", "Airbus")]
        try:
            archives.AIRCRAFT.update(changed)
            if how == "number":
                archives.AIRCRAFT["test"] = [("4", "A320", "", "Airbus")]
            archives.write("fgvc_aircraft", folder)
        finally:
            archives.AIRCRAFT.update(rows)


@pytest.mark.parametrize(
    "how, message",
    [
        ("missing", r"2013b.tar.gz is missing; download https://.* put it into --archives"),
        ("cut", "2013b.tar.gz is no whole archive .* delete it and download it again"),
        ("family", "'737-200' has the family and manufacturer .*Boeing 737.*Boeing 747"),
        ("number", "images_family_test.txt: the line '4 ' is no number and name"),
    ],
)
def test_damaged_archives_are_refused_by_name(tmp_path, how, message):
    damaged(tmp_path / "archives", how)
    with pytest.raises(ValueError, match=message):
        prepare_data.prepare("fgvc_aircraft", str(tmp_path / "data"), str(tmp_path / "archives"))
    # Nothing half-written is taken for the data set.
    with pytest.raises(ValueError, match="prepare it once"):
        open_split("fgvc_aircraft", str(tmp_path / "data"), "train")


def test_mock_data_of_tfds_has_the_features_that_are_read():
    import tensorflow_datasets as tfds

    for dataset in sorted(archives.WRITERS):
        with tfds.testing.mock_data(num_examples=3):
            builder = tfds_images.make_builder(dataset, None)
            records = builder.as_data_source(split="train")
            features = builder.info.features
            assert len(records) == 3
            for record in records:
                assert record["image"].dtype == np.uint8 and record["image"].ndim == 3
                assert 0 <= int(record["label"]) < tfds_images.PUBLISHED[dataset].classes
                assert isinstance(record[tfds_images.PUBLISHED[dataset].name_feature], str | bytes)
            assert features["label"].num_classes == tfds_images.PUBLISHED[dataset].classes
            splits = set(tfds_images.PUBLISHED[dataset].sizes)
            aliases = set(tfds_images.PUBLISHED[dataset].aliases.values())
            assert aliases <= splits


def test_nothing_here_imported_tensorflow():
    assert "tensorflow" not in sys.modules
