"""Reads the rows of tables: CSV, TSV, JSONL, Parquet, and the Arrow files of `datasets`."""

import csv
import json
import pathlib
import reprlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from absl import logging

from speciarl_jax.models import safetensors_io

SUFFIXES = (".csv", ".tsv", ".jsonl", ".parquet")
_MISSING = object()  # in place of a field that a line of CSV lacks
_DELIMITERS = (",", ";", "\t", "|")
_MOST_CHARACTERS = 2**30  # of a field
_UTF_16 = (b"\xff\xfe", b"\xfe\xff")  # as Excel's "Unicode text" begins
_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 80  # characters


def short(value: Any) -> str:
    """Returns a value as messages show it, cut to a line."""
    return _SHORT.repr(value)


class Stored:
    """An encoded image that a Parquet or Arrow file holds; copied only when it is read.

    Attributes:
      path: what the file says that the image was called; "" for nothing.
    """

    def __init__(self, chunk: Any, index: int):
        """Args: chunk: an Arrow array of bytes, or of {bytes, path}. index: row within it."""
        self._chunk, self._index = chunk, index
        named = chunk.type.num_fields and chunk.type.get_field_index("path") >= 0
        self.path = (chunk.field("path")[index].as_py() or "") if named else ""

    def read(self) -> bytes | None:
        """Returns the content of the image file, or None where there is only a path."""
        value = self._chunk[self._index].as_py()
        return value.get("bytes") if isinstance(value, dict) else value


def rows_of(path: pathlib.Path, columns: Iterable[str]) -> Iterator[tuple[int, dict]]:
    """Yields the rows of a table with their numbers, as an editor or `pyarrow` counts them.

    Class numbers of `datasets` (ClassLabel) become the names of their classes.

    Args:
      path: file with one of `SUFFIXES`, or ".arrow".
      columns: names of the columns that must exist, each once.

    Raises:
      ValueError: the file is missing, damaged or of another kind, or lacks a column or has it
        twice; names the file and the line.
    """
    columns = list(dict.fromkeys(columns))
    readers = {".csv": _csv_rows, ".tsv": _csv_rows, ".jsonl": _json_rows}
    readers |= {".parquet": _arrow_rows, ".arrow": _arrow_rows}
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise ValueError(f"{path} is no table; give a file that ends in one of {SUFFIXES}")
    if not path.is_file():
        what = "is no regular file" if path.exists() else "is missing"
        hint = " (write its path with '/' in place of '\\')" if "\\" in str(path) else ""
        raise ValueError(f"{path} {what}; set config.data.options.path to your table{hint}")
    if said := safetensors_io.pointer(path):
        raise ValueError(said)
    try:
        yield from reader(path, columns)
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no UTF-8 text ({error}); save it as UTF-8") from None
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error})") from None


def columns_of(path: pathlib.Path, known: Iterable[str] = ()) -> list[str]:
    """Returns the names of the columns; of JSONL those of the first row. Empty if unreadable.

    Args:
      known: some of them, which tell the delimiter.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        if path.suffix == ".parquet":
            return pq.read_schema(path).names
        if path.suffix == ".arrow":
            return _open_arrow(path).schema.names
        for _, row in rows_of(path, known):
            return list(row)
    except (ValueError, OSError, pa.ArrowException):
        pass
    return []


def check_columns(path: pathlib.Path, found: Sequence[str], columns: Iterable[str]) -> None:
    """Refuses a table that lacks one of the columns, or has it twice (ValueError)."""
    counts = Counter(found)
    for column in columns:
        if not counts[column]:
            raise ValueError(
                f"{path} has no column {column!r}, only {short(sorted(map(str, found)))}; "
                "rename one, or set config.data.options.image_column, label_column, "
                "label_path_column or id_column"
            )
        if counts[column] > 1:
            raise ValueError(
                f"{path} has {counts[column]} columns {column!r}; rename or remove one of them"
            )


def _encoding(path: pathlib.Path) -> str:
    with open(path, "rb") as file:
        return "utf-16" if file.read(2) in _UTF_16 else "utf-8-sig"


def _delimiter(path: pathlib.Path, first: str, columns: Sequence[str]) -> str:
    """Returns what separates the fields of the first line, by the columns that it must name."""
    usual = "\t" if path.suffix.lower() == ".tsv" else ","
    for one in (usual, *_DELIMITERS):
        if set(columns) <= set(next(csv.reader([first], delimiter=one), [])):
            if one != usual:
                logging.info("%s: its fields are separated by %r", path, one)
            return one
    return usual


def _csv_rows(path, columns):
    csv.field_size_limit(_MOST_CHARACTERS)
    with open(path, encoding=_encoding(path), newline="") as file:
        delimiter = _delimiter(path, file.readline(), columns)
        file.seek(0)
        reader = csv.DictReader(
            file, delimiter=delimiter, restkey=_MISSING, restval=_MISSING, strict=True
        )
        try:
            check_columns(path, reader.fieldnames or [], columns)
            for row in reader:
                if _MISSING in row or _MISSING in row.values():
                    raise ValueError(
                        f"{path}, line {reader.line_num}: not as many fields as the first line "
                        f"has columns ({len(reader.fieldnames)}); quote fields that hold the "
                        f"delimiter {delimiter!r}"
                    )
                if columns and all(row[column] == column for column in columns):
                    raise ValueError(
                        f"{path}, line {reader.line_num}: the names of the columns once more; "
                        "remove that line"
                    )
                yield reader.line_num, row
        except csv.Error as error:
            raise ValueError(
                f"{path}, line {reader.line_num}: {error}; mend that line or the next (an open "
                "quote?)"
            ) from None


def _json_rows(path, columns):
    with open(path, encoding=_encoding(path)) as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            where = f"{path}, line {number}"
            array = line.lstrip().startswith("[")
            names: list[str] = []

            def pairs(found, names=names):
                names[:] = [name for name, _ in found]  # those of the outermost object come last
                return dict(found)

            try:
                row = json.loads(line, object_pairs_hook=pairs)
            except (ValueError, RecursionError) as error:
                what = "a JSON array begins here" if array else f"no JSON ({error})"
                hint = ", without a comma behind it" if line.rstrip().endswith(",") else ""
                raise ValueError(f"{where}: {what}; write one object a line{hint}") from None
            if array:
                raise ValueError(
                    f"{where}: got {short(row)}; write an object a line, not a JSON array of "
                    f"{len(row)}"
                )
            if not isinstance(row, dict):
                raise ValueError(f"{where}: got {short(row)}; write an object")
            try:
                check_columns(path, names, columns)
            except ValueError as error:
                raise ValueError(f"line {number}: {error}") from None
            yield number, row


def _open_arrow(path):
    import pyarrow as pa

    source = pa.memory_map(str(path))
    try:
        return pa.ipc.open_stream(source).read_all()  # as `datasets` writes
    except pa.ArrowInvalid:
        return pa.ipc.open_file(source).read_all()


def _arrow_rows(path, columns):
    import pyarrow as pa
    import pyarrow.parquet as pq

    kind = "Parquet" if path.suffix.lower() == ".parquet" else "Arrow"
    try:
        if kind == "Parquet":
            check_columns(path, pq.read_schema(path).names, columns)
            table = pq.read_table(path, columns=columns)
        else:
            table = _open_arrow(path)
            check_columns(path, table.schema.names, columns)
        classes = _class_names(path, table.schema)
    except pa.ArrowException as error:
        raise ValueError(f"{path} is no whole {kind} file ({error}); write it again") from None
    values = [_values(table.column(column), classes.get(column)) for column in columns]
    for number in range(table.num_rows):
        yield number, {c: next(v) for c, v in zip(columns, values, strict=True)}


def _class_names(path, schema) -> dict[str, list[str]]:
    """Returns column -> its class names, as `datasets` writes them beside the data."""
    features = {}
    try:
        features = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
        features = features.get("info", {}).get("features", {})
        beside = path.parent / "dataset_info.json"
        if not features and beside.is_file():
            features = json.loads(beside.read_text("utf-8")).get("features") or {}
    except (ValueError, AttributeError, OSError):
        features = {}
    found = {}
    for column, feature in features.items():
        if isinstance(feature, dict) and feature.get("_type") == "ClassLabel":
            names = feature.get("names") or []
            found[column] = list(names.values()) if isinstance(names, dict) else list(names)
    return found


def _values(column, names: list[str] | None) -> Iterator[Any]:
    import pyarrow as pa

    column = _plain(column)
    kind = column.type
    stored = pa.types.is_binary(kind) or pa.types.is_large_binary(kind)
    if pa.types.is_struct(kind):
        stored = kind.get_field_index("bytes") >= 0
    for chunk in column.chunks:
        for index in range(len(chunk)):
            if stored and chunk[index].is_valid:
                yield Stored(chunk, index)
                continue
            value = chunk[index].as_py()
            known = names and isinstance(value, int | float) and value in range(len(names))
            yield names[int(value)] if known else value


def _plain(column):
    """Returns a column without dictionary and views, and an image for a list of one image."""
    import pyarrow as pa
    import pyarrow.compute as pc

    kind = column.type
    if pa.types.is_dictionary(kind):
        chunks = [chunk.dictionary_decode() for chunk in column.chunks]
        return pa.chunked_array(chunks, kind.value_type)
    if pa.types.is_binary_view(kind):
        return column.cast(pa.large_binary())
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        inner = kind.value_type
        image = pa.types.is_binary(inner) or pa.types.is_large_binary(inner)
        image = image or (pa.types.is_struct(inner) and inner.get_field_index("bytes") >= 0)
        if image and pc.all(pc.equal(pc.list_value_length(column), 1), skip_nulls=False).as_py():
            return pc.list_flatten(column)
    return column
