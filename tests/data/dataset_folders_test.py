"""Data as `datasets` writes it: Parquet shards, `save_to_disk`, and `imagefolder` with metadata."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from own_images import encoded, open_table

FEATURES = {
    "image": {"_type": "Image"},
    "label": {"names": ["eagle", "salmon"], "_type": "ClassLabel"},
}
META = {"huggingface": json.dumps({"info": {"features": FEATURES}})}


def arrow(numbers, paths=None, meta=META, labels=None):
    paths = paths or [f"{n}.png" for n in numbers]
    image = pa.array(
        [{"bytes": encoded(n), "path": p} for n, p in zip(numbers, paths, strict=True)],
        pa.struct([("bytes", pa.binary()), ("path", pa.string())]),
    )
    labels = pa.array(labels or [n % 2 for n in numbers])
    return pa.table({"image": image, "label": labels}).replace_schema_metadata(meta)


def shards(root, split, *parts):
    root.mkdir(parents=True, exist_ok=True)
    for i, numbers in enumerate(parts):
        pq.write_table(arrow(numbers), root / f"{split}-{i:05}-of-{len(parts):05}.parquet")
    return root


def reds(source):
    return [int(row["image"][0, 0, 0]) for row in source]


def test_shards_of_several_splits_are_read_by_part(tmp_path):
    shards(tmp_path / "data", "train", [1, 2], [3, 4])
    shards(tmp_path / "data", "test", [5])
    source = open_table(tmp_path, part="training", group="animal")
    assert reds(source) == [1, 2, 3, 4]
    assert [row["label"] for row in source] == ["salmon", "eagle", "salmon", "eagle"]
    assert reds(open_table(tmp_path, part="held_out", group="animal")) == [5]
    assert reds(open_table(tmp_path, split="test", group="animal")) == [5]


def test_a_missing_shard_is_refused(tmp_path):
    shards(tmp_path, "train", [1], [2], [3])
    (tmp_path / "train-00001-of-00003.parquet").unlink()
    with pytest.raises(ValueError, match=r"'train' has the shards \[0, 2\] of \[3\]; download"):
        open_table(tmp_path)


def test_images_of_one_path_are_told_apart_by_their_content(tmp_path, caplog):
    path = tmp_path / "t.parquet"
    pq.write_table(arrow([1, 2, 3, 3], ["image.png"] * 4), path)
    source = open_table(path, group="animal")
    assert reds(source) == [1, 2, 3] and "1 rows repeat" in caplog.text
    assert len({row["image_id"] for row in source}) == 3
    pq.write_table(arrow([1, 1], ["image.png"] * 2, labels=[0, 1]), path)
    with pytest.raises(ValueError, match="row 1: 'image.png' was in row 0 already.*'eagle'"):
        open_table(path)


def test_a_class_number_without_a_name_is_refused(tmp_path):
    path = tmp_path / "t.parquet"
    pq.write_table(arrow([1, 2], labels=[0, -1]), path)
    with pytest.raises(ValueError, match="row 1, column 'label': the label is -1"):
        open_table(path)
    pq.write_table(arrow([1, 2], meta=None), path)
    with pytest.raises(ValueError, match="row 0, column 'label': the label is 1"):
        open_table(path)


@pytest.mark.parametrize("as_dict", [True, False])
def test_what_save_to_disk_wrote_is_read(tmp_path, as_dict):
    parts = {"train": [1, 2, 3], "test": [4]} if as_dict else {"": [1, 2, 3]}
    if as_dict:
        (tmp_path / "dataset_dict.json").write_text(json.dumps({"splits": list(parts)}))
    for split, numbers in parts.items():
        folder = tmp_path / split
        folder.mkdir(exist_ok=True)
        table = arrow(numbers, meta=None)
        with pa.OSFile(str(folder / "data-00000-of-00001.arrow"), "wb") as file:
            with pa.ipc.new_stream(file, table.schema) as writer:
                writer.write_table(table)
        state = {"_data_files": [{"filename": "data-00000-of-00001.arrow"}]}
        (folder / "state.json").write_text(json.dumps(state))
        (folder / "dataset_info.json").write_text(json.dumps({"features": FEATURES}))
    options = {"part": "training"} if as_dict else {}
    source = open_table(tmp_path, group="animal", **options)
    assert reds(source) == [1, 2, 3] and source[0]["label"] == "salmon"
    if as_dict:
        assert reds(open_table(tmp_path, part="held_out", group="animal")) == [4]


@pytest.mark.parametrize("suffix", [".jsonl", ".csv"])
def test_an_imagefolder_with_metadata_is_read(tmp_path, suffix):
    for split, numbers in (("train", [1, 2]), ("validation", [3])):
        (tmp_path / split / "img").mkdir(parents=True)
        rows = [{"file_name": f"img/{n}.png", "label": "eagle"} for n in numbers]
        for n in numbers:
            (tmp_path / split / f"img/{n}.png").write_bytes(encoded(n))
        lines = [json.dumps(row) for row in rows]
        if suffix == ".csv":
            lines = ["file_name,label", *(",".join(row.values()) for row in rows)]
        (tmp_path / split / f"metadata{suffix}").write_text("\n".join(lines))
    source = open_table(tmp_path, part="training", group="bird")
    assert reds(source) == [1, 2] and source.describe(0)["key"] == "train/img/1.png"
    assert reds(open_table(tmp_path, part="held_out", group="bird")) == [3]


def test_several_data_sets_in_one_folder_are_refused(tmp_path):
    shards(tmp_path / "one", "train", [1])
    shards(tmp_path / "two", "train", [2])
    with pytest.raises(ValueError, match="several data sets with the split 'train'.*'one', 'two'"):
        open_table(tmp_path)


def test_rows_without_a_label_stop_nothing_in_a_split_that_is_not_read(tmp_path, caplog):
    for split, numbers, labels in (("train", [1, 2], None), ("validation", [3], None)):
        pq.write_table(arrow(numbers, labels=labels), tmp_path / f"{split}-00000-of-00001.parquet")
    pq.write_table(arrow([4, 5], labels=[-1, -1]), tmp_path / "test-00000-of-00001.parquet")
    assert reds(open_table(tmp_path, part="training", group="animal")) == [1, 2]
    assert "passed over 2 rows without a label" in caplog.text
    assert reds(open_table(tmp_path, part="held_out", group="animal")) == [3]
    with pytest.raises(ValueError, match="row 0, column 'label': the label is -1"):
        open_table(tmp_path, split="test")


@pytest.mark.parametrize(
    "names",
    [
        ("train_0", "train_1", "test_0"),
        ("train-00000", "train-00001", "test-00000"),
        ("train/part-0-ab1.c000", "train/part-1-ab1.c000", "test/part-0-ab1.c000"),
    ],
)
def test_shards_are_found_by_their_numbers(tmp_path, names):
    for name, number in zip(names, (1, 2, 3), strict=True):
        path = tmp_path / f"{name}.parquet"
        path.parent.mkdir(exist_ok=True)
        pq.write_table(arrow([number]), path)
    assert reds(open_table(tmp_path, part="training", group="animal")) == [1, 2]
    assert reds(open_table(tmp_path, part="held_out", group="animal")) == [3]


def test_each_folder_of_a_split_may_have_metadata(tmp_path):
    for number, label in enumerate(("eagle", "salmon")):
        folder = tmp_path / "train" / label
        folder.mkdir(parents=True)
        (folder / "1.png").write_bytes(encoded(number))
        (folder / "metadata.csv").write_text(f"file_name,label\n1.png,{label}\n")
    source = open_table(tmp_path, group="animal")
    assert [row["label"] for row in source] == ["eagle", "salmon"] and reds(source) == [0, 1]


def test_a_saved_choice_of_rows_is_refused(tmp_path):
    (tmp_path / "data.arrow").write_bytes(b"")
    state = {
        "_data_files": [{"filename": "data.arrow"}],
        "_indices_data_files": [{"filename": "i"}],
    }
    (tmp_path / "state.json").write_text(json.dumps(state))
    with pytest.raises(ValueError, match="a choice of its rows .* save it again"):
        open_table(tmp_path)
