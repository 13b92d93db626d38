"""CSV, TSV, JSONL and Parquet, whole and damaged."""

import io
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from speciarl_jax.data import images, table
from speciarl_jax.verifiers.taxonomy import Taxonomy

ROWS = [
    {"image": "a.png", "label": "eagle", "path": "animal > bird > eagle"},
    {"image": "b.png", "label": "salmon", "path": "animal > fish"},
    {"image": "sub/c.png", "label": "eagle", "path": "animal > bird > eagle"},
]


def encoded(number):
    file = io.BytesIO()
    Image.new("RGB", (8, 6), (number, 40, 90)).save(file, "PNG")
    return file.getvalue()


def write(folder, suffix, rows=ROWS):
    (folder / "sub").mkdir(exist_ok=True)
    for number, row in enumerate(ROWS):
        (folder / row["image"]).write_bytes(encoded(number))
    path = folder / f"table{suffix}"
    if suffix == ".jsonl":
        path.write_text("\n".join(map(json.dumps, rows)) + "\n\n")
    elif suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        mark = {".csv": ",", ".tsv": "\t"}[suffix]
        lines = [mark.join(rows[0]), *(mark.join(row.values()) for row in rows)]
        path.write_text("\ufeff" + "\n".join(lines), encoding="utf-8")
    return path


def open_table(path, **options):
    return table.Source(path=str(path), seed=0, **options)


@pytest.mark.parametrize("suffix", table.SUFFIXES)
def test_every_format_gives_the_same_rows(tmp_path, suffix):
    source = open_table(write(tmp_path, suffix), label_path_column="path")
    rows = list(source)
    assert [row["label"] for row in rows] == ["eagle", "salmon", "eagle"]
    assert [row["key"] for row in rows] == ["a.png", "b.png", "sub/c.png"]
    for number, row in enumerate(rows):
        np.testing.assert_array_equal(row["image"][0, 0], [number, 40, 90])
    taxonomy = Taxonomy(source.label_tree)
    said = {"eagle": "SPECIFIC", "bird": "LESS_SPECIFIC", "animal": "GENERIC", "fish": "WRONG"}
    for answer, verdict in said.items():
        assert taxonomy.category(answer, "eagle").name == verdict
    assert taxonomy.category("fish", "salmon").name == "LESS_SPECIFIC"
    assert not source.missing()


def test_label_paths_may_be_lists_and_ids_a_column(tmp_path):
    rows = [{**row, "path": row["path"].split(" > "), "n": i} for i, row in enumerate(ROWS)]
    for suffix in (".jsonl", ".parquet"):
        path = write(tmp_path, suffix, rows)
        source = open_table(path, label_path_column="path", id_column="n")
        assert [source.describe(i)["key"] for i in range(3)] == ["0", "1", "2"]
        assert source.label_tree["leaves"]["eagle"]["ancestors"] == [["bird"]]


@pytest.mark.parametrize("as_struct", [True, False])
def test_parquet_may_hold_the_images(tmp_path, as_struct):
    rows = [
        {"image": {"bytes": encoded(i), "path": f"{i}.png"} if as_struct else encoded(i)}
        | {"label": "eagle"}
        for i in range(3)
    ]
    path = tmp_path / "table.parquet"
    pq.write_table(pa.Table.from_pylist(rows), path)
    source = open_table(path, group="bird")
    assert [int(row["image"][0, 0, 0]) for row in source] == [0, 1, 2]
    assert len({row["key"] for row in source}) == 3
    assert (source.describe(0)["key"] == "0.png") == as_struct


def test_relative_paths_start_from_the_root(tmp_path):
    path = write(tmp_path, ".csv")
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    path = path.rename(moved / "table.csv")
    assert len(open_table(path).missing()) == 3
    assert not open_table(path, root=str(tmp_path)).missing()
    with pytest.raises(images.BrokenImageError, match="a.png is missing .3 such files"):
        images.check_files(open_table(path))


def changed(number, **changes):
    rows = [dict(row) for row in ROWS]
    rows[number] |= changes
    return rows


@pytest.mark.parametrize("suffix", table.SUFFIXES)
@pytest.mark.parametrize(
    "rows, options, message",
    [
        (changed(1, label="  "), {}, "row .*'label': the label is empty; write it"),
        (changed(1, image=""), {}, "column 'image': got ''; write the path"),
        (changed(1, image="a.png"), {}, r"'a.png' was in row \d already; remove one"),
        (ROWS, {"image_column": "file"}, "has no column 'file', only .*'image'.*image_column"),
        (ROWS, {"label_path_column": "levels"}, "has no column 'levels'"),
        (
            changed(2, path="animal > eagle"),
            {"label_path_column": "path"},
            "'eagle' has the path .*'animal', 'eagle'.*earlier row; give a label one path",
        ),
        (changed(2, path=""), {"id_column": "path"}, "the identity is empty"),
        (changed(0, label="??"), {}, "without any letter or digit"),
    ],
)
def test_rows_that_do_not_fit_are_refused_by_line(tmp_path, suffix, rows, options, message):
    path = write(tmp_path, suffix, rows)
    with pytest.raises(ValueError, match=message) as error:
        open_table(path, **options)
    assert str(path) in str(error.value)


def test_a_label_that_is_a_number_says_nothing(tmp_path):
    with pytest.raises(ValueError, match="line|row 1.*the label is 7; write the name in words"):
        open_table(write(tmp_path, ".jsonl", [{"image": "a.png", "label": 7}]))


@pytest.mark.parametrize(
    "suffix, content, message",
    [
        (".csv", b"image,label\na.png,eagle,more\n", "line 2: not as many fields"),
        (".csv", b"image,label\na.png\n", "line 2: not as many fields"),
        (".csv", b'image,label\n"a.png,eagle\n', "line 1: unexpected end of data.*open quote"),
        (".csv", b"", "has no column 'image', only"),
        (".csv", b"image,label\n", "has no row"),
        (".csv", b"image,label\n\xff\xfe,x\n", "no UTF-8 text"),
        (".jsonl", b'{"image": "a.png", "label": "x"}\n{"image"\n', "line 2: no JSON"),
        (".jsonl", b"[1]\n", "line 1: got .1.; write an object"),
        (".jsonl", b'{"image": "a.png"}\n', "line 1: .*has no column 'label'"),
        (".parquet", b"PAR1 and then nothing", "no whole Parquet file"),
        (
            ".csv",
            b"image,label\na.png,x\nimage,label\n",
            "line 3: the names of the columns once more",
        ),
        (
            ".csv",
            b"image,label\nhttps://x.org/a.png,x\n",
            "row 2.*which is no path; write the images",
        ),
        (".csv", b"image,label\ndata:image/png;base64,iV,x\n", "line 2: not as many fields"),
        (".jsonl", b'{"image": "data:image/png;base64,iV", "label": "x"}\n', "row 1.*no path"),
        (".jsonl", b'{"image": "a.png", "label": "x"},\n', "object a line, without a comma behind"),
        (
            ".csv",
            b"version https://git-lfs.github.com/spec/v1\noid sha256:a\n",
            "pointer of Git LFS",
        ),
        (".parquet", b"version https://git-lfs.github.com/spec/v1\nsize 9\n", "pointer of Git LFS"),
        (".xlsx", b"", "is no table; give a file that ends in one of"),
    ],
)
def test_damaged_files_are_refused_by_name(tmp_path, suffix, content, message):
    path = tmp_path / f"table{suffix}"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message) as error:
        open_table(path)
    assert str(path) in str(error.value)


def test_a_missing_table_is_named(tmp_path):
    with pytest.raises(ValueError, match="none.csv is missing; set config.data.options.path"):
        open_table(tmp_path / "none.csv")
    with pytest.raises(ValueError, match="is no table"):
        table.Source(path=None, seed=0)


def test_the_index_column_of_pandas_is_no_trouble(tmp_path):
    path = write(tmp_path, ".csv")
    rows = [
        f"{i - 1 if i else ''},{line}"
        for i, line in enumerate(path.read_text("utf-8-sig").split("\n"))
    ]
    path.write_text("\n".join(rows))
    assert [row["label"] for row in open_table(path)] == ["eagle", "salmon", "eagle"]


@pytest.mark.parametrize("suffix", table.SUFFIXES)
@pytest.mark.parametrize("id_column", ["", "path"])
def test_one_image_with_two_labels_is_found_whatever_its_spelling(tmp_path, suffix, id_column):
    rows = [dict(row, path=str(i)) for i, row in enumerate(changed(1, image="./sub/../a.png"))]
    path = write(tmp_path, suffix, rows)
    with pytest.raises(
        ValueError, match=r"'./sub/../a.png' was in row \d already.*'eagle', here 's"
    ):
        open_table(path, id_column=id_column)


@pytest.mark.parametrize(
    "suffix, content",
    [
        (".csv", "image,label,label\na.png,x,y\n"),
        (".tsv", "image\tlabel\tlabel\na.png\tx\ty\n"),
        (".jsonl", '{"image": "a.png", "label": "x", "label": "y"}\n'),
    ],
)
def test_a_column_that_is_there_twice_is_named(tmp_path, suffix, content):
    path = tmp_path / f"t{suffix}"
    path.write_text(content)
    with pytest.raises(ValueError, match="has 2 columns 'label'; rename or remove"):
        open_table(path)


def test_a_parquet_column_that_is_there_twice_is_named(tmp_path):
    path = tmp_path / "t.parquet"
    pq.write_table(pa.Table.from_arrays([pa.array(["a"])] * 3, ["image", "label", "label"]), path)
    with pytest.raises(ValueError, match="has 2 columns 'label'; rename or remove"):
        open_table(path)


@pytest.mark.parametrize("suffix", table.SUFFIXES)
def test_a_number_is_no_label_in_any_format(tmp_path, suffix):
    with pytest.raises(ValueError, match="the label is '7'; write the name in words"):
        open_table(write(tmp_path, suffix, changed(1, label="7")))


def test_a_json_array_is_not_echoed(tmp_path):
    path = tmp_path / "t.jsonl"
    path.write_text(json.dumps(ROWS * 2000))
    with pytest.raises(ValueError, match="line 1: got .*not a JSON array of 6000") as error:
        open_table(path)
    assert len(str(error.value)) < 1000
    path.write_text(json.dumps(ROWS, indent=1))
    with pytest.raises(ValueError, match="line 1: a JSON array begins here"):
        open_table(path)


def test_windows_paths_get_a_hint(tmp_path):
    path = write(tmp_path, ".jsonl", changed(0, image="img\\a.png"))
    with pytest.raises(images.BrokenImageError, match="holds a backslash: write paths with '/'"):
        images.check_files(open_table(path))


@pytest.mark.parametrize("mark", [";", "\t", "|", ","])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("suffix", [".csv", ".tsv"])
def test_other_delimiters_and_utf_16_are_read(tmp_path, mark, encoding, suffix):
    path = tmp_path / f"t{suffix}"
    rows = [
        ["id", "image", "label"],
        ["1", "a.png", '"bald\neagle"'],
        ["2", "b.png", "M\u00fcller"],
    ]
    path.write_bytes("\r\n".join(mark.join(row) for row in rows).encode(encoding))
    source = open_table(path, group="bird")
    assert [row.label for row in source.entries] == ["bald eagle", "M\u00fcller"]
    assert [row.key for row in source.entries] == ["a.png", "b.png"]


def test_a_long_field_of_another_column_is_no_trouble(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text(f"image,label,note\na.png,eagle,{'x' * 200_000}\n")
    assert len(open_table(path, group="bird")) == 1


@pytest.mark.parametrize("suffix", table.SUFFIXES)
@pytest.mark.parametrize("label", ["nan", "NaN", "null", "<NA>", "True", "false", "1e3", "-7.0"])
def test_what_stands_for_no_name_is_no_label_in_any_format(tmp_path, suffix, label):
    with pytest.raises(ValueError, match=f"the label is '{label}'; write the name in words"):
        open_table(write(tmp_path, suffix, changed(1, label=label)))


@pytest.mark.parametrize("suffix", table.SUFFIXES)
@pytest.mark.parametrize("column", ["split", "Subset", ""])
def test_a_table_may_say_the_split_of_each_row(tmp_path, suffix, column):
    rows = [
        {"image": f"images/{split}/{i}.png" if not column else f"{i}.png", "label": "eagle"}
        | ({column: split} if column else {})
        for i, split in enumerate(["train", "train", "test", "validation"])
    ]
    path = write(tmp_path, suffix, rows)
    for part, count in (("training", 2), ("held_out", 1), ("all", 4)):
        assert len(open_table(path, group="bird", part=part)) == count
    (held_out,) = open_table(path, group="bird", part="held_out").entries
    assert held_out.key.endswith("3.png")
    assert len(open_table(path, group="bird", split="none", part="all")) == 4
    assert len(open_table(path, group="bird", split="train")) == 2


def test_a_column_that_names_no_splits_is_none(tmp_path):
    rows = [dict(row, split=f"{i}") for i, row in enumerate(ROWS)]
    assert len(open_table(write(tmp_path, ".csv", rows))) == 3


def test_parquet_may_hold_images_as_dictionary_as_view_and_in_lists(tmp_path):
    pictures = [encoded(i) for i in range(3)]
    struct = pa.array([[{"bytes": x, "path": f"{i}.png"}] for i, x in enumerate(pictures)])
    columns = [
        pa.array(pictures).dictionary_encode(),
        pa.array(pictures, pa.binary_view()),
        pa.array(pictures, pa.large_binary()),
        pa.array([[x] for x in pictures]),
        struct,
    ]
    for number, column in enumerate(columns):
        path = tmp_path / f"{number}.parquet"
        labels = pa.array(["a", "b", "a"]).dictionary_encode()
        pq.write_table(pa.table({"image": column, "label": labels}), path)
        source = open_table(path, group="x")
        assert [int(row["image"][0, 0, 0]) for row in source] == [0, 1, 2], column.type
        assert [row["label"] for row in source] == ["a", "b", "a"]
    pq.write_table(pa.table({"image": pa.array([pictures]), "label": ["a"]}), path)
    with pytest.raises(ValueError, match="row 0, column 'image': got .*write the path"):
        open_table(path)


def test_one_image_by_a_relative_and_an_absolute_path_or_a_linked_folder_is_found(
    tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "link").symlink_to(tmp_path / "sub")
    for name, first in ((f"{tmp_path}/a.png", "a.png"), ("link/c.png", "sub/c.png")):
        rows = [{"image": first, "label": "eagle"}, {"image": name, "label": "salmon"}]
        path = write(tmp_path, ".csv", rows)
        with pytest.raises(ValueError, match="was in row 2 already.*'eagle', here 'salmon'"):
            open_table(path.name)
