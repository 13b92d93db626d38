"""Reads and writes safetensors checkpoints, one file or several with an index."""

import json
import math
import os
import pathlib
import re
import shutil
import stat
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import ml_dtypes  # noqa: F401  registers bfloat16 with numpy
import numpy as np
from absl import logging
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from speciarl_jax.runtime.messages import first_line

SINGLE, INDEX, CONFIG = "model.safetensors", "model.safetensors.index.json", "config.json"
GENERATION = "generation_config.json"
# A folder with weights holds one of them.
ENTRIES = (SINGLE, INDEX)
# The default of `transformers`.
MAX_SHARD_BYTES = 5 * 10**9
_STAGING = ".incomplete"
_META = "__metadata__"  # an entry of headers that is no tensor
_MAX_HEADER = 10**8  # bytes, by the format
# The first bytes of what Git leaves in place of a large file that was not fetched.
LFS_POINTER = b"version https://git-lfs.github.com/spec/"
# Tables that models compute anew; integers about positions (0, 1, 2, ...) are such tables, too.
_BUFFERS = ("inv_freq", "original_inv_freq", "cos_cached", "sin_cached", "position_ids")


class Header(NamedTuple):
    """The entry of a tensor in the header of its file."""

    file: str
    dtype: str  # as the format spells it: "BF16", "F32", "I8", "F8_E4M3", ...
    shape: tuple[int, ...]
    nbytes: int


class Reader:
    """Reads the tensors of a checkpoint folder, each when it is asked for."""

    def __init__(self, folder: str | pathlib.Path):
        """Reads the headers of all files; no weights.

        Buffers that models compute anew are left out. An index may list such a buffer, or a head
        that is tied to the embedding, that no file holds.

        Raises:
          ValueError: no safetensors there, a broken index, a shard that is missing or damaged, a
            tensor that two shards hold, or an index that disagrees with its shards.
        """
        self.folder = pathlib.Path(folder)
        index, single = self.folder / INDEX, (self.folder / SINGLE).exists()
        promised = _read_index(index) if index.exists() else None
        if promised is None and not single:
            raise ValueError(
                f"{self.folder} holds neither {SINGLE} nor {INDEX}; point the path at a checkpoint "
                "folder with safetensors weights"
            )
        files = sorted(set(promised.values())) if promised else [SINGLE]
        if single and SINGLE not in files:
            raise ValueError(
                f"{self.folder} holds {SINGLE} beside an index of other files; delete whichever of "
                "the two is out of date"
            )
        self._headers: dict[str, Header] = {}
        for file in files:
            for name, header in self._read_headers(file).items():
                if name in self._headers:
                    raise ValueError(
                        f"tensor {name!r} is in both {self._headers[name].file} and {file} of "
                        f"{self.folder}; delete the stray file"
                    )
                self._headers[name] = header
        found = {name: header.file for name, header in self._headers.items()}
        self._headers = {
            name: x for name, x in self._headers.items() if not _is_buffer(name, x.dtype)
        }
        if passed_over := sorted(found.keys() - self._headers.keys()):
            logging.info(
                "%s: passed over %d buffers that are computed anew: %s",
                *(self.folder, len(passed_over), passed_over[:3]),
            )
        if promised is not None:
            _check_index(index, promised, found)

    def _read_headers(self, file: str) -> dict[str, Header]:
        path = self.folder / file
        try:
            with safe_open(path, framework="numpy") as tensors:
                slices = {name: tensors.get_slice(name) for name in tensors.keys()}
                return {name: _header(file, part) for name, part in slices.items()}
        except FileNotFoundError:
            raise ValueError(f"{path} is named in the index but missing; download it") from None
        except (SafetensorError, OSError) as error:
            raise ValueError(damage(path, error, "download it again")) from None

    def __contains__(self, name: str) -> bool:
        return name in self._headers

    def __iter__(self) -> Iterator[str]:
        return iter(self._headers)

    def header(self, name: str) -> Header:
        """Returns file, dtype, shape and bytes of a tensor, without reading it."""
        return self._headers[name]

    def read(self, name: str, index: tuple[slice, ...] = ()) -> np.ndarray:
        """Reads a tensor, or a part of it, as it is stored (bfloat16 as `ml_dtypes.bfloat16`).

        The file is opened for this one tensor: an open file keeps in memory every page that was
        ever touched, in the end the whole checkpoint.

        Args:
          index: slices of its first axes; only their bytes are copied.

        Raises:
          ValueError: the file cannot be read any more.
        """
        path = self.folder / self._headers[name].file
        try:
            with safe_open(path, framework="numpy") as file:
                return file.get_slice(name)[index] if index else file.get_tensor(name)
        except (SafetensorError, OSError) as error:
            raise ValueError(
                f"tensor {name!r} in {path} cannot be read: {first_line(error)}"
            ) from None


def _is_buffer(name: str, dtype: str = "") -> bool:
    last = name.rpartition(".")[2]
    return last in _BUFFERS or (dtype.startswith(("I", "U")) and "position" in last)


def _check_index(path: pathlib.Path, promised: Mapping[str, str], found: Mapping[str, str]) -> None:
    """Refuses an index that disagrees with its files about a tensor that a model reads."""
    wrong = {name for name in {**promised, **found} if promised.get(name) != found.get(name)}
    # A tied head is not stored, or is a copy; a model that needs one says that it is lacking.
    harmless = {n for n in wrong if _is_buffer(n) or n.rpartition("lm_head.")[2] == "weight"}
    wrong -= {name for name in harmless if name not in promised or name not in found}
    if wrong:
        raise ValueError(
            f"{path} disagrees with its files about {sorted(wrong)[:5]} ({len(wrong)} in all); "
            "download the checkpoint again"
        )


def pointer(path: pathlib.Path) -> str:
    """Says that a file is a pointer of Git LFS to what was never fetched; "" if it is none."""
    try:
        with path.open("rb") as file:
            is_pointer = file.read(len(LFS_POINTER)) == LFS_POINTER
    except OSError:
        return ""
    return (
        f"{path} is a pointer of Git LFS, and not the file itself; fetch it with git lfs pull in "
        "the folder of the clone"
        if is_pointer
        else ""
    )


def damage(path: pathlib.Path, error: Exception, remedy: str) -> str:
    """Says what is wrong with a safetensors file that cannot be opened, and what to do.

    For a file that was cut short behind its header it names the first tensor that is not whole.

    Args:
      remedy: what to do with a damaged file.
    """
    return pointer(path) or f"{_damage(path, error)}; {remedy}"


def _damage(path: pathlib.Path, error: Exception) -> str:
    said = f"{path} is damaged ({first_line(error)})"
    try:
        with path.open("rb") as file:
            start = 8 + int.from_bytes(file.read(8), "little")
            size = path.stat().st_size
            whole = start <= min(size, _MAX_HEADER)
            header = json.loads(file.read(start - 8)) if whole else {}
        ends = {
            name: start + one["data_offsets"][1] for name, one in header.items() if name != _META
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError):
        return said
    cut = min((name for name in ends if ends[name] > size), key=ends.get, default=None)
    if cut is None:
        return said
    return (
        f"{said}: it was cut short at {size} bytes, within or before tensor {cut!r}, which ends "
        f"at {ends[cut]}"
    )


def _header(file: str, part: Any) -> Header:
    kind, shape = part.get_dtype(), tuple(part.get_shape())
    bits = re.search(r"\d+", kind)  # "BOOL" has none
    return Header(file, kind, shape, math.prod(shape) * int(bits[0] if bits else 8) // 8)


def read_json(
    path: pathlib.Path, hint: str = "point the path at a checkpoint folder"
) -> dict[str, Any]:
    """Reads a JSON object; `hint` says what to do where there is no such file.

    Raises:
      ValueError: the file is missing, no text, no JSON or no object.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise ValueError(f"{path} is missing; {hint}") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        said = pointer(path) or f"{path} is no JSON: {error}; download it again"
        raise ValueError(said) from None
    if not isinstance(found, dict):
        raise ValueError(f"{path} is no JSON object; download it again")
    return found


def check_names(
    where: str | pathlib.Path, present: set[str], wanted: set[str], question: str
) -> None:
    """Refuses a file or folder whose tensors are not exactly those that are wanted (ValueError)."""
    for what, names in (("lacks", wanted - present), ("has unexpected", present - wanted)):
        if names:
            raise ValueError(
                f"{where} {what} tensors {sorted(names)[:5]} ({len(names)} in all); {question}"
            )


def _read_index(path: pathlib.Path) -> dict[str, str]:
    """Returns the file of each tensor."""
    promised = read_json(path).get("weight_map")
    if not isinstance(promised, dict) or not promised:
        raise ValueError(f"{path} lacks a weight_map; download it again")
    for name, file in promised.items():
        # Nothing outside the folder is ever opened.
        if not isinstance(file, str) or pathlib.PurePath(file).name != file:
            raise ValueError(f"{path} says {name!r} is in {file!r}, which is no name of a file")
    return promised


class Pending(NamedTuple):
    """A tensor that is made when its file is written."""

    nbytes: int
    make: Callable[[], np.ndarray]


def plan_shards(nbytes: Mapping[str, int], max_shard_bytes: int) -> list[list[str]]:
    """Deals tensors, in their order, to files of at most `max_shard_bytes`.

    A larger tensor has a file to itself.
    """
    shards, used = [], math.inf
    for name, size in nbytes.items():
        if used + size > max_shard_bytes:
            shards.append([])
            used = 0
        shards[-1].append(name)
        used += size
    return shards


def write(
    folder: str | pathlib.Path,
    tensors: Mapping[str, Pending],
    *,
    config: str,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> None:
    """Writes `config.json` and one safetensors file, or several with an index.

    One file at a time is in memory. A checkpoint that is there already stays whole until all of the
    new one is on disk; then it is replaced, `config.json`, without which nothing loads, last.

    Args:
      folder: made if needed; other files in it stay.
      tensors: in the order of the files.
      config: text of `config.json`.
      max_shard_bytes: of weights in one file.

    Raises:
      ValueError: no tensors, or `max_shard_bytes` is not positive.
    """
    if max_shard_bytes < 1 or not tensors:
        raise ValueError(
            f"cannot write {len(tensors)} tensors in files of {max_shard_bytes} bytes; "
            "max_shard_bytes must be positive"
        )
    folder = pathlib.Path(folder)
    staging = folder / _STAGING
    shutil.rmtree(staging, ignore_errors=True)  # of a run that was killed
    staging.mkdir(parents=True)
    try:
        shards = plan_shards({n: t.nbytes for n, t in tensors.items()}, max_shard_bytes)
        _write_shards(staging, shards, tensors)
        (staging / CONFIG).write_text(config)
        _replace(folder, staging)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def save(tensors: Mapping[str, np.ndarray], path: pathlib.Path, **metadata: str) -> None:
    """Writes one safetensors file that whoever the umask says may read."""
    # `transformers` asks for the format.
    save_file(dict(tensors), path, metadata={"format": "pt", **metadata})
    obey_umask(path)


def obey_umask(path: pathlib.Path) -> None:
    """Gives a file the permissions that a new file has; `safetensors` makes it its owner's alone.

    The umask is read off a file: asking for it would change it for other threads.
    """
    example = path.with_name(f".{path.name}.new")
    example.touch()
    os.chmod(path, stat.S_IMODE(example.stat().st_mode))
    example.unlink()


def _write_shards(
    folder: pathlib.Path, shards: Sequence[Sequence[str]], tensors: Mapping[str, Pending]
) -> None:
    files = [f"model-{i:05}-of-{len(shards):05}.safetensors" for i in range(1, len(shards) + 1)]
    if len(files) == 1:
        files = [SINGLE]
    for file, names in zip(files, shards, strict=True):
        made = {name: np.ascontiguousarray(tensors[name].make()) for name in names}
        save(made, folder / file)
        del made  # before the next file's
    if len(files) > 1:
        index = {
            "metadata": {"total_size": sum(t.nbytes for t in tensors.values())},
            "weight_map": {n: f for f, names in zip(files, shards, strict=True) for n in names},
        }
        (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n")


def _replace(folder: pathlib.Path, staging: pathlib.Path) -> None:
    (folder / CONFIG).unlink(missing_ok=True)
    for old in (folder / SINGLE, folder / INDEX, *folder.glob("model-*-of-*.safetensors")):
        old.unlink(missing_ok=True)
    for new in staging.iterdir():
        if new.name != CONFIG:
            os.replace(new, folder / new.name)
    os.replace(staging / CONFIG, folder / CONFIG)


def refuse_gguf(folder: str | pathlib.Path) -> None:
    """Refuses a folder whose only weights are in GGUF.

    Raises:
      ValueError: it is one; says how to convert it.
    """
    folder = pathlib.Path(folder)
    found = sorted(folder.glob("*.gguf"))
    if found and not any(folder.glob("*.safetensors")):
        raise ValueError(
            f"{folder} holds weights in GGUF ({found[0].name}), and safetensors are read; convert "
            f"them: python -m speciarl_jax.tools.convert_gguf --file={found[0]} --out=FOLDER"
        )
