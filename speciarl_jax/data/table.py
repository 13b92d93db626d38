"""Data set of a user's own images: a CSV, TSV, JSONL or Parquet file with a row for each image.

    image,label,label_path
    photos/1.jpg,eagle,animal > bird > bird of prey > eagle

The label path runs from the most general name to the label; label paths make the label tree. It
may be a list. Parquet may hold the images themselves, as bytes or as the `{bytes, path}` that
`datasets` writes. In place of a file the path may be a folder of tables (`dataset_folders`). A
column `split`, or folders like `train/` at the front of all paths, say the split of each row.
"""

import functools
import os
import pathlib
import re
from collections import Counter
from collections.abc import Mapping
from typing import Any, NamedTuple

from absl import logging

from speciarl_jax.data import (
    dataset_folders,
    file_dataset,
    images,
    label_names,
    label_paths,
    label_tree,
    splits,
    table_rows,
)

SUFFIXES = table_rows.SUFFIXES
_SPLIT_COLUMNS = ("split", "subset", "partition", "set")
# What stands for a missing or logical value where a label should be.
_NO_NAMES = ("nan", "null", "<na>", "nat", "true", "false")
_LONGEST_PATH = 4096  # characters, of Linux


class _Row(NamedTuple):
    split: str
    where: str  # file and number, for messages
    folder: pathlib.Path  # where relative paths start
    image_column: str
    values: Mapping[str, Any]


class _Columns(NamedTuple):
    root: str  # option of `Source`
    image: str
    words: list[str]  # of the label, and of its path
    others: list[str]


class _Image(NamedTuple):
    name: str  # what the table calls it
    place: Any  # path, `Stored`, or bytes


class Source(file_dataset.Listing):
    """Random access to the images of a table."""

    def __init__(
        self,
        *,
        path: str,
        seed: int,
        image_column: str = "image",
        label_column: str = "label",
        label_path_column: str = "",
        label_path_separator: str = "",
        id_column: str = "",
        root: str = "",
        group: str = "",
        split: str = "",
        part: str = "all",
        **selection: Any,
    ):
        """Reads the table; opens no image.

        Args:
          path: the table, or a folder of tables.
          seed: has no effect.
          image_column: column of the images' paths, or of the images themselves.
          label_column: column of the labels, in words.
          label_path_column: column of the label paths; "" for none.
          label_path_separator: what stands between the names of a label path; "" finds it.
          id_column: column that identifies a row; "" takes the image's path.
          root: folder that relative paths start from; "" takes the table's folder.
          group: what all labels are ("bird"), for the label tree; "" takes the first name of the
            label path.
          split: split to read, of a folder of tables or of a table that names splits; "" for the
            one that fits `part`.
          part: of `file_dataset.PARTS`; the data's own splits come before it.
          **selection: options of `file_dataset.Listing`, such as `subset`.

        Raises:
          ValueError: the table is damaged or lacks a column; a row has no label or no image,
            contradicts the label path of another row, or has the identity of another row. Names
            the line.
        """
        del seed
        tables = dataset_folders.tables_of(path)
        words = [label_column, *filter(None, (label_path_column,))]
        columns = _Columns(root, image_column, words, [id_column] if id_column else [])
        if list(tables) == [""]:
            rows = _one_table(tables[""], columns, split)
            by_split: dict[str, list[_Row]] = {} if rows else {"": []}
            for row in rows:
                by_split.setdefault(row.split, []).append(row)
            chosen, part = _choose(by_split, split, part, str(path))
        else:
            chosen, part = _choose(tables, split, part, str(path), " files")
            rows = [
                row
                for name, files in tables.items()
                for file in files
                for row in _rows(name, file, columns, images_too=name in chosen)
            ]
        rows = _with_labels(rows, label_column, chosen)
        cells = _cells(rows, label_column, label_path_column)
        paths = label_paths.read(cells, label_path_separator)
        paths_of = label_paths.one_each(cells, paths)
        several = os.path.isdir(path or "")
        entries = _entries(
            [(row, cell) for row, cell in zip(rows, cells, strict=True) if row.split in chosen],
            id_column,
            pathlib.Path(path) if several else None,
        )
        if not entries:
            raise ValueError(f"{path} has no row; add images")
        label_names.report_numbers(paths_of, str(path))
        super().__init__(
            entries,
            _read,
            label_tree.from_paths(paths_of, group, str(path)),
            name="table",
            part=part,
            **selection,
        )


def _choose(tables, split, part, where, unit=""):
    """Returns the names of the splits to read, and the part of them."""
    if list(tables) == [""]:
        if split not in ("", splits.NONE):
            raise ValueError(f"{where} has no splits, so no {split!r}; set the option split to ''")
        return [""], part
    return splits.chosen(dict(tables), split, part, where, unit)


def _rows(name, file, columns, *, images_too=True):
    """Yields the rows of a table of the split `name`."""
    image = columns.image
    if dataset_folders.is_metadata(file) and image not in table_rows.columns_of(file):
        image = dataset_folders.FILE_NAME
    asked = [image, *columns.words, *columns.others] if images_too else columns.words
    folder = pathlib.Path(columns.root) if columns.root else file.parent
    for number, values in table_rows.rows_of(file, asked):
        yield _Row(name, f"{file}, row {number}", folder, image, values)


def _one_table(files, columns: _Columns, split: str) -> list[_Row]:
    """Returns the rows of a table that is no split, with the splits that it names itself."""
    column = _split_column(files, columns)
    if column:
        columns = columns._replace(others=[*columns.others, column])
    rows = [row for file in files for row in _rows("", file, columns)]
    return rows if split == splits.NONE else _with_splits(rows, column)


def _split_column(files, columns: _Columns) -> str:
    """Returns the column that may say the split of each row; "" for none."""
    used = (columns.image, *columns.words, *columns.others)
    names = table_rows.columns_of(files[0], columns.words) if files[0].is_file() else []
    found = [name for name in names if str(name).casefold() in _SPLIT_COLUMNS and name not in used]
    return found[0] if len(found) == 1 else ""


def _with_splits(rows: list[_Row], column: str) -> list[_Row]:
    """Returns the rows with the splits that a column or the first folders of their images name."""
    for say in (lambda row: str(row.values.get(column) or "").strip(), _first_folder):
        named = [say(row) for row in rows]
        kinds = {splits.kind_of(name) for name in named}
        if splits.TRAINING in kinds and len(kinds) > 1 and None not in kinds:
            return [row._replace(split=name) for row, name in zip(rows, named, strict=True)]
    return rows


def _first_folder(row: _Row) -> str:
    value = row.values[row.image_column]
    parts = [*pathlib.PurePosixPath(value).parts[:-1]] if isinstance(value, str) else []
    while parts and splits.is_container(parts[0]):
        parts = parts[1:]
    return parts[0] if parts else ""


def _with_labels(rows: list[_Row], column: str, chosen: list[str]) -> list[_Row]:
    """Leaves out rows without a label, of splits that are not read; others are refused later."""
    kept, lost = [], []
    for row in rows:
        try:
            if row.split not in chosen:
                _label(row.values[column], column, row.where)
            kept.append(row)
        except ValueError:
            lost.append(row.where)
    if lost:
        logging.warning(
            "passed over %d rows without a label in words (%s, ...), in splits that are not read",
            *(len(lost), lost[0]),
        )
    return kept


def _cells(rows, label_column, label_path_column) -> list[label_paths.Cell]:
    raw = [_label(row.values[label_column], label_column, row.where) for row in rows]
    said = label_names.clean_siblings(raw)
    return [
        label_paths.Cell(
            row.where,
            said[text],
            row.values[label_path_column] if label_path_column else [],
        )
        for row, text in zip(rows, raw, strict=True)
    ]


def _label(value: Any, column: str, where: str) -> str:
    where = f"{where}, column {column!r}"
    if not isinstance(value, str) or _is_no_name(value):
        raise ValueError(
            f"{where}: the label is {value!r}; write the name in words (a policy does not know "
            "what a number stands for)"
        )
    if not label_names.tidy(value):
        raise ValueError(f"{where}: the label is empty; write it, or remove the row")
    return value


def _is_no_name(text: str) -> bool:
    """Tells whether a text is a number, or stands for a missing or logical value."""
    text = text.strip().casefold()
    try:
        float(text)
        return any(map(str.isdigit, text)) or text in _NO_NAMES
    except ValueError:
        return text in _NO_NAMES


def _entries(rows, id_column: str, top: pathlib.Path | None) -> list[file_dataset.Entry]:
    """Makes the entries, and refuses images that stand in several rows.

    Args:
      rows: (row, cell) pairs.
      top: folder of all tables, to which names are relative; None for a single table.
    """
    found = [_image(row) for row, _ in rows]
    # In some data sets all images have one path, and differ in their content only.
    shared = Counter((row.split, f.name) for (row, _), f in zip(rows, found, strict=True))
    entries: list[file_dataset.Entry] = []
    seen: dict[Any, tuple[str, str]] = {}  # identity -> place and label of the first such row
    twice = []
    for (row, cell), image in zip(rows, found, strict=True):
        key = image.name
        own_content = not isinstance(image.place, str)
        if own_content and (not key or shared[row.split, key] > 1):
            digest = file_dataset.stable_hash(image.place.read().hex())
            key = f"{key}#{digest:016x}" if key else f"{digest:016x}"
        if top is not None:
            inside = row.folder.is_relative_to(top) and not own_content
            key = os.path.join(row.folder.relative_to(top) if inside else row.split, key)
        same = (row.split, key) if own_content else _same_place(image.place)
        if id_column:
            key = str(row.values[id_column] if row.values[id_column] is not None else "").strip()
            if not key:
                raise ValueError(
                    f"{row.where}, column {id_column!r}: the identity is empty; write one"
                )
        first = seen.setdefault(same, (row.where, cell.label))
        if first[0] != row.where:
            # Published data sets hold the same image twice; which row counts makes no difference.
            if own_content and not id_column and first[1] == cell.label:
                twice.append(row.where)
                continue
            if first[1] != cell.label or not id_column:
                _refuse_twice(row, image.name or key, cell.label, first)
        if id_column:
            other = seen.setdefault(("id", key), (row.where, cell.label))
            if other[0] != row.where:
                _refuse_twice(row, key, cell.label, other)
        entries.append(file_dataset.Entry(key, cell.label, cell.label, image.place))
    if twice:
        logging.warning(
            "%d rows repeat the image and label of an earlier row and are left out (%s, ...)",
            *(len(twice), twice[0]),
        )
    return entries


def _same_place(path: str) -> str:
    """Returns what is equal for all spellings of a path; a link to a file is a file of its own."""
    folder, name = os.path.split(path)
    return os.path.join(_real(os.path.join(os.getcwd(), folder)), name)


@functools.lru_cache(maxsize=4096)
def _real(folder: str) -> str:
    return os.path.realpath(folder)


def _refuse_twice(row, name, label, first):
    place, other = first
    number = place.rsplit("row ", 1)[-1]
    file = "" if place.rsplit(", row ", 1)[0] == row.where.rsplit(", row ", 1)[0] else f" ({place})"
    said = f" (there its label is {other!r}, here {label!r})" if other != label else ""
    raise ValueError(
        f"{row.where}: {name!r} was in row {number} already{file}; remove one of them{said}, or "
        "set config.data.options.id_column to a column that is different in every row"
    )


def _image(row: _Row) -> _Image:
    """Returns what a row calls its image, and where it is."""
    value, name = row.values[row.image_column], ""
    if isinstance(value, table_rows.Stored):
        name = value.path
        if value.read():
            return _Image(name, value)
        value = name
    elif isinstance(value, Mapping):
        value = value.get("path") or ""
    if not isinstance(value, str) or not value.strip():
        raise ValueError(
            f"{row.where}, column {row.image_column!r}: got {table_rows.short(value)}; write the "
            "path of an image"
        )
    if len(value) > _LONGEST_PATH or re.match(r"data:|[A-Za-z][A-Za-z0-9+.-]+://", value):
        raise ValueError(
            f"{row.where}, column {row.image_column!r}: got {table_rows.short(value)}, which is no "
            "path; write the images to files and give their paths"
        )
    return _Image(value, str(row.folder / value))


def _read(entry: file_dataset.Entry):
    if isinstance(entry.place, str):
        return images.read(entry.place)
    return images.decode(entry.place.read(), f"image {entry.key!r}")
