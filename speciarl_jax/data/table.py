"""Data set of a user's own images: a CSV, TSV, JSONL or Parquet file with a row for each image.

    image,label,label_path
    photos/1.jpg,eagle,animal > bird > bird of prey > eagle

The label path runs from the most general name to the label; label paths make the label tree. In
JSONL and Parquet it may be a list. Parquet may hold the images themselves, as bytes or as the
`{bytes, path}` that `datasets` writes.
"""

import csv
import json
import os
import pathlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from speciarl_jax.data import file_dataset, images, label_tree

SUFFIXES = (".csv", ".tsv", ".jsonl", ".parquet")
SEPARATOR = ">"


def rows_of(path: str | os.PathLike, columns: Iterable[str]) -> Iterator[tuple[int, dict]]:
    """Yields the rows of a table with their numbers, as an editor or `pyarrow` counts them.

    Args:
      path: file with one of `SUFFIXES`.
      columns: names of the columns that must exist.

    Raises:
      ValueError: the file is missing, damaged or of another kind, or lacks a column; names the file
        and the line.
    """
    path, columns = pathlib.Path(path or "no path"), list(columns)
    readers = {".csv": _csv_rows, ".tsv": _csv_rows, ".jsonl": _json_rows, ".parquet": _parquet}
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise ValueError(f"{path} is no table; give a file that ends in one of {SUFFIXES}")
    if not path.exists():
        raise ValueError(f"{path} is missing; set config.data.options.path to your table")
    try:
        yield from reader(path, columns)
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no UTF-8 text ({error}); save it as UTF-8") from None
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error})") from None


def _check_columns(path: pathlib.Path, found: Iterable[str], columns: list[str]) -> None:
    missing = [column for column in columns if column not in found]
    if missing:
        raise ValueError(
            f"{path} has no column {missing[0]!r}, only {sorted(map(str, found))}; rename one, or "
            "set config.data.options.image_column, label_column, label_path_column or id_column"
        )


def _csv_rows(path, columns):
    with open(path, encoding="utf-8-sig", newline="") as file:
        delimiter = "\t" if path.suffix.lower() == ".tsv" else ","
        reader = csv.DictReader(file, delimiter=delimiter, restkey="", strict=True)
        try:
            _check_columns(path, reader.fieldnames or [], columns)
            for row in reader:
                if "" in row or None in row.values():
                    raise ValueError(
                        f"{path}, line {reader.line_num}: not as many fields as the first line "
                        f"has columns ({len(reader.fieldnames)}); quote fields that hold the "
                        f"delimiter {delimiter!r}"
                    )
                yield reader.line_num, row
        except csv.Error as error:
            raise ValueError(
                f"{path}, line {reader.line_num}: {error}; mend that line or the next (an open "
                "quote?)"
            ) from None


def _json_rows(path, columns):
    with open(path, encoding="utf-8-sig") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except ValueError as error:
                raise ValueError(
                    f"{path}, line {number}: no JSON ({error}); write one object a line"
                ) from None
            if not isinstance(row, dict):
                raise ValueError(f"{path}, line {number}: got {row!r}; write an object")
            try:
                _check_columns(path, row, columns)
            except ValueError as error:
                raise ValueError(f"line {number}: {error}") from None
            yield number, row


def _parquet(path, columns):
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        _check_columns(path, pq.read_schema(path).names, columns)
        table = pq.read_table(path, columns=list(dict.fromkeys(columns)))
    except pa.ArrowException as error:
        raise ValueError(f"{path} is no whole Parquet file ({error}); write it again") from None
    for number in range(table.num_rows):
        yield number, {name: table[name][number].as_py() for name in table.column_names}


def _label_path(value: Any, label: str, where: str) -> list[str]:
    """Returns the names from the most general to `label`."""
    parts = value.split(SEPARATOR) if isinstance(value, str) else value
    if not isinstance(parts, list) or not all(isinstance(part, str) for part in parts):
        raise ValueError(
            f"{where}: the label path is {value!r}; write names with {SEPARATOR!r} between them, "
            "the most general first"
        )
    names = [name for part in parts if (name := label_tree.clean(part))]
    return names if names and names[-1] == label else [*names, label]


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
        id_column: str = "",
        root: str = "",
        group: str = "",
        **selection: Any,
    ):
        """Reads the table; opens no image.

        Args:
          seed: has no effect.
          image_column: column of the images' paths, or of the images themselves.
          label_column: column of the labels, in words.
          label_path_column: column of the label paths; "" for none.
          id_column: column that identifies a row; "" takes the image's path.
          root: folder that relative paths start from; "" takes the table's folder.
          group: what all labels are ("bird"), for the label tree; "" takes the first name of the
            label path.
          **selection: options of `file_dataset.Listing`, such as `part` and `subset`.

        Raises:
          ValueError: the table is damaged or lacks a column; a row has no label or no image,
            contradicts the label path of another row, or has the identity of another row. Names
            the line.
        """
        del seed
        columns = [image_column, label_column, *filter(None, (label_path_column, id_column))]
        folder = pathlib.Path(root or os.path.dirname(path or ""))
        entries: list[file_dataset.Entry] = []
        paths: dict[str, list[str]] = {}
        lines: dict[str, int] = {}
        for number, row in rows_of(path, columns):
            where = f"{path}, row {number}"
            label = _label(row[label_column], label_column, where)
            key, place = _image(row, image_column, id_column, folder, where)
            if key in lines:
                raise ValueError(
                    f"{where}: {key!r} was in row {lines[key]} already; remove one of them, or set "
                    "config.data.options.id_column to a column that is different in every row"
                )
            lines[key] = number
            value = row[label_path_column] if label_path_column else []
            names = _label_path(value, label, where)
            if paths.setdefault(label, names) != names:
                raise ValueError(
                    f"{where}: the label {label!r} has the path {names}, but {paths[label]} in an "
                    "earlier row; give a label one path"
                )
            entries.append(file_dataset.Entry(key, label, label, place))
        if not entries:
            raise ValueError(f"{path} has no row; add images")
        super().__init__(
            entries,
            _read,
            label_tree.from_paths(paths, group, str(path)),
            name="table",
            **selection,
        )


def _label(value: Any, column: str, where: str) -> str:
    where = f"{where}, column {column!r}"
    if not isinstance(value, str):
        raise ValueError(
            f"{where}: the label is {value!r}; write the name in words (a policy does not know "
            "what a number stands for)"
        )
    if not (label := label_tree.clean(value)):
        raise ValueError(f"{where}: the label is empty; write it, or remove the row")
    return label


def _image(
    row: Mapping[str, Any], image_column: str, id_column: str, folder: pathlib.Path, where: str
) -> tuple[str, Any]:
    """Returns the key of a row, and the path or bytes of its image."""
    value, key = row[image_column], ""
    if isinstance(value, Mapping):
        key, value = value.get("path") or "", value.get("bytes") or value.get("path")
    if isinstance(value, str) and value.strip():
        key, value = value, str(folder / value)
    elif not isinstance(value, bytes):
        raise ValueError(
            f"{where}, column {image_column!r}: got {value!r}; write the path of an image"
        )
    if id_column:
        key = str(row[id_column] if row[id_column] is not None else "").strip()
        if not key:
            raise ValueError(f"{where}, column {id_column!r}: the identity is empty; write one")
    return key or f"{file_dataset.stable_hash(value.hex()):016x}", value


def _read(entry: file_dataset.Entry):
    if isinstance(entry.place, bytes):
        return images.decode(entry.place, f"image {entry.key!r}")
    return images.read(entry.place)
