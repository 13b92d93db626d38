"""Finds the tables of a folder as `datasets` writes and reads it, by split.

data/train-00000-of-00002.parquet, data/test-00000-of-00001.parquet
dataset_dict.json, train/data-00000-of-00001.arrow               (`save_to_disk`)
train/metadata.jsonl, train/0001.png, test/metadata.jsonl, ...   (`imagefolder`)
train.csv, test.csv
"""

import json
import os
import pathlib
import re
from collections import Counter
from collections.abc import Mapping

from speciarl_jax.data import splits, table_rows

_SHARD = re.compile(r"(.+?)-(\d+)-of-(\d+)(-[0-9a-f]+)?$")
_METADATA = ("metadata.jsonl", "metadata.csv", "metadata.parquet")
# The column of paths in `metadata.jsonl`, relative to it.
FILE_NAME = "file_name"


def is_metadata(path: pathlib.Path) -> bool:
    """Tells whether a table lists the images beside it, as those of `imagefolder` do."""
    return path.name.lower() in _METADATA


def tables_of(place: str | os.PathLike) -> dict[str, list[pathlib.Path]]:
    """Returns split -> its tables, in order; the split is "" where there is only one.

    Args:
      place: a table, or a folder of tables.

    Raises:
      ValueError: the folder holds no table, a shard is missing, or tables do not belong together.
    """
    root = pathlib.Path(place or "no path")
    if not root.is_dir():
        return {"": [root]}
    if (root / "dataset_dict.json").is_file():
        names = _read(root / "dataset_dict.json").get("splits", [])
        return {name: _saved(root / name) for name in names}
    if (root / "state.json").is_file():
        return {"": _saved(root)}
    files = _tables_below(root)
    if not files:
        raise ValueError(
            f"{root} holds no table; give a file that ends in one of {table_rows.SUFFIXES}, or a "
            "folder of them (configs/own_folder.py reads folders of images)"
        )
    found: dict[str, list[pathlib.Path]] = {}
    named = {file: _split_of(file, root) for file in files}
    together = Counter(map(_without_number, named.values()))
    for file, name in named.items():
        bare = _without_number(name)
        found.setdefault(bare if together[bare] > 1 else name, []).append(file)
    for name, members in found.items():
        _check_shards(name, members, root)
    if "" in found and len(found) > 1:
        raise ValueError(
            f"{root}: {found[''][0].relative_to(root)} names no split, but other tables beside it "
            f"do ({sorted(filter(None, found))}); move it away, or give one table"
        )
    return found


def _tables_below(root: pathlib.Path) -> list[pathlib.Path]:
    suffixes = (*table_rows.SUFFIXES, ".arrow")
    found = []
    for folder, inner, files in os.walk(root, followlinks=False):
        inner[:] = sorted(name for name in inner if not name.startswith("."))
        paths = [pathlib.Path(folder, name) for name in sorted(files) if not name.startswith(".")]
        found += [path for path in paths if path.suffix.lower() in suffixes]
    # Beside metadata other tables are no lists of images.
    return [path for path in found if is_metadata(path)] or found


def _split_of(file: pathlib.Path, root: pathlib.Path) -> str:
    """Returns the split that a file or one of its folders is named after, else ""."""
    names = [*file.relative_to(root).parent.parts, file.stem]
    shard = _SHARD.fullmatch(file.stem)
    if shard:
        names[-1] = shard[1]
    for name in reversed(names):
        if splits.kind_of(name):
            return name
    return shard[1] if shard and shard[1] != "data" else ""


def _without_number(name: str) -> str:
    """Returns the split of a shard: "train" of "train_0" and "train-00001"."""
    bare = re.sub(r"[-_.]\d+$", "", name)
    return bare if splits.kind_of(bare) else name


def _check_shards(name: str, files: list[pathlib.Path], root: pathlib.Path) -> None:
    parents = sorted({str(file.parent.relative_to(root)) for file in files})
    if len(parents) > 1 and not all(map(is_metadata, files)):
        raise ValueError(
            f"{root} has several data sets with the split {name!r}, in {parents}; give one of "
            "these folders"
        )
    shards = [m for file in files if (m := _SHARD.fullmatch(file.stem))]
    if not shards:
        numbered = all(file.suffix.lower() == ".parquet" for file in files) and (
            len({re.sub(r"\d+", "", file.stem) for file in files}) == 1
        )
        if len(files) > 1 and not numbered and not all(map(is_metadata, files)):
            raise ValueError(
                f"{root} holds several tables of the split {name!r} "
                f"({[file.name for file in files][:5]}); give one of them"
            )
        return
    expected = {int(m[3]) for m in shards}
    numbers = sorted(int(m[2]) for m in shards)
    if len(expected) > 1 or numbers != list(range(max(expected))) or len(shards) < len(files):
        raise ValueError(
            f"{root}: the split {name!r} has the shards {numbers[:20]} of {sorted(expected)}; "
            "download the missing ones, or move away those of another version"
        )


def _saved(folder: pathlib.Path) -> list[pathlib.Path]:
    """Returns the Arrow files of a folder that `save_to_disk` wrote."""
    state = _read(folder / "state.json")
    files = [folder / row["filename"] for row in state.get("_data_files", [])]
    if lost := [file for file in files if not file.is_file()]:
        raise ValueError(f"{lost[0]} is missing; copy the whole folder {folder}")
    if state.get("_indices_data_files"):
        raise ValueError(
            f"{folder} holds a choice of its rows beside them, as old versions of datasets wrote "
            "it; load it with datasets and save it again"
        )
    if not files:
        raise ValueError(f"{folder / 'state.json'} names no data; save the data set again")
    return files


def _read(path: pathlib.Path) -> Mapping:
    try:
        found = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read ({error}); save the data set again") from None
    if not isinstance(found, dict):
        raise ValueError(f"{path} holds no object; save the data set again")
    return found
