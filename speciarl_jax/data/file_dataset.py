"""Base of data sets of image files: named rows, parts and subsets, and reading on demand."""

import collections
import concurrent.futures
import dataclasses
import functools
import hashlib
import os
import stat
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

PARTS = ("all", "training", "held_out")
_WHOLE, _BLOCK = 2**20, 2**16  # bytes
_READERS = 16  # threads


@dataclasses.dataclass(frozen=True, slots=True)
class Entry:
    """A labelled image that has not been read."""

    key: str  # name within its data set, the same on every machine (relative path, file name)
    label_id: str  # id of a leaf of the label tree
    label: str
    place: Any  # what `read` needs to find it: a path, the encoded image, or (split, row)


def stable_hash(text: str) -> int:
    """Returns a 64-bit hash that is the same in every process and release."""
    digest = hashlib.sha256(text.encode("utf-8", "surrogateescape")).digest()
    return int.from_bytes(digest[:8], "big")


def choose_part(entries: Iterable[Entry], part: str, held_out_share: float) -> list[Entry]:
    """Returns one part of a data set that has no split of its own.

    Every label with at least two images has some in both parts. Within a label only the keys
    decide, so other labels change nothing, and a smaller share lies within a larger one.

    Args:
      part: one of `PARTS`.
      held_out_share: approximate share of the images of a label in "held_out", between 0 and 1.

    Raises:
      ValueError: an unknown part, or a share outside of (0, 1).
    """
    if part not in PARTS:
        raise ValueError(
            f"config.data.options.part (or that of config.evaluation.options) is {part!r}; choose "
            f"one of {PARTS}"
        )
    if not 0 < held_out_share < 1:
        raise ValueError(
            "config.data.options.held_out_share (or that of config.evaluation.options) is "
            f"{held_out_share}; it must lie between 0 and 1"
        )
    entries = list(entries)
    if part == "all":
        return entries
    by_label = collections.defaultdict(list)
    for entry in entries:
        order = stable_hash(f"part/{entry.key}"), entry.key
        by_label[entry.label_id].append(order)
    held_out = set()
    for orders in by_label.values():
        # Half up; one image alone is for training.
        count = int(held_out_share * len(orders) + 0.5)
        count = min(max(count, 1), len(orders) - 1)
        held_out |= {key for _, key in sorted(orders)[:count]}
    return [e for e in entries if (e.key in held_out) == (part == "held_out")]


def choose_subset(entries: Sequence[Entry], count: int, seed: int) -> list[Entry]:
    """Returns `count` images, balanced over the labels, in the order of `entries`.

    The choice depends on neither the order nor the machine. With one seed a smaller subset lies
    within a larger one: the 128 images are among the 1,024.

    Args:
      count: number of images; 0 for all.

    Raises:
      ValueError: there are fewer images than `count`.
    """
    if not count:
        return list(entries)
    if not 0 < count <= len(entries):
        raise ValueError(
            f"config.data.options.subset (or that of config.evaluation.options) is {count}, but "
            f"there are {len(entries)} images; lower it, or set it to 0 for all"
        )
    by_label = collections.defaultdict(list)
    for i, entry in enumerate(entries):
        order = stable_hash(f"{seed}/{entry.label_id}/{entry.key}")
        by_label[entry.label_id].append((order, entry.key, i))
    ranked = [
        (rank, order, key, i)
        for rows in by_label.values()
        for rank, (order, key, i) in enumerate(sorted(rows))
    ]
    return [entries[i] for i in sorted(i for *_, i in sorted(ranked)[:count])]


def digest(place: Any) -> bytes:
    """Hashes the content of an image.

    Of a file of more than `_WHOLE` bytes its size and blocks spread over it are hashed: another
    image differs in them, a few changed bytes may not.
    """
    found = hashlib.sha256()
    if not isinstance(place, str | os.PathLike):
        found.update(place.read() if hasattr(place, "read") else repr(place).encode())
        return found.digest()
    try:
        state = os.stat(place)
        if not stat.S_ISREG(state.st_mode):
            raise OSError
        with open(place, "rb") as file:
            if state.st_size <= _WHOLE:
                found.update(file.read())
            else:
                found.update(str(state.st_size).encode())
                last = _WHOLE // _BLOCK - 1
                for number in range(last + 1):
                    file.seek(number * (state.st_size - _BLOCK) // last)
                    found.update(file.read(_BLOCK))
    except OSError:
        found.update(b"cannot be read")
    return found.digest()


class Listing:
    """Random access to listed images (a Grain `RandomAccessDataSource`).

    Rows do not depend on the seed, so all epochs share one object (`with_seed`).

    Attributes:
      label_tree: tree of their labels, or None.
      read: reads the pixels of an entry.
    """

    def __init__(
        self,
        entries: Sequence[Entry],
        read: Callable[[Entry], np.ndarray],
        label_tree: Mapping[str, Any] | None,
        *,
        name: str,
        part: str = "all",
        held_out_share: float = 0.1,
        subset: int = 0,
        subset_seed: int = 0,
        content: Callable[[], str] | None = None,
    ):
        """Chooses the images.

        Args:
          read: reads the pixels of an entry, uint8 [height, width, 3].
          label_tree: tree of the labels, or None.
          name: name of the data set; part of the images' identity.
          part, held_out_share: as for `choose_part`; "all" of a data set with splits of its own.
          subset: number of images, balanced over the labels; 0 for all (`choose_subset`).
          content: computes a hash of what the images show; None reads their files.

        Raises:
          ValueError: no image is left, or an option does not fit.
        """
        try:
            chosen = choose_part(entries, part, held_out_share)
            self.entries = choose_subset(chosen, subset, subset_seed)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None
        if not self.entries:
            raise ValueError(
                f"{name}: none of its {len(entries)} images is in part {part!r}; add images, "
                "or change held_out_share"
            )
        self.label_tree = label_tree
        self.read, self._name = read, name
        self._content = content

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Reads a row: `image` uint8 [height, width, 3], and the fields of `describe`.

        Raises:
          BrokenImageError: the image cannot be read.
        """
        return {"image": self.read(self.entries[index]), **self.describe(index)}

    def describe(self, index: int) -> dict[str, Any]:
        """Returns a row without its image: `image_id`, `label_id`, `label` and `key`.

        With a label tree also `generic`, the group of the label, for `config.train.target`.
        """
        entry = self.entries[index]
        row = {
            "image_id": stable_hash(f"{self._name}/{entry.key}") >> 33,
            "label_id": entry.label_id,
            "label": entry.label,
            "key": entry.key,
        }
        if leaf := (self.label_tree or {}).get("leaves", {}).get(entry.label_id):
            row["generic"] = leaf["generic"]
        return row

    def with_seed(self, seed: int) -> "Listing":
        """Returns itself: the images do not depend on the seed."""
        del seed
        return self

    @functools.cached_property
    def fingerprint(self) -> str:
        """Hash that changes when an image or label is added, removed, renamed or reordered."""
        digest = hashlib.sha256()
        for entry in self.entries:
            line = f"{entry.key}\0{entry.label_id}\n"
            digest.update(line.encode("utf-8", "surrogateescape"))
        return digest.hexdigest()[:32]

    @functools.cached_property
    def content_fingerprint(self) -> str:
        """Hash that changes when the content of an image changes; reads the files (`digest`)."""
        if self._content is not None:
            return self._content()
        whole = hashlib.sha256()
        with concurrent.futures.ThreadPoolExecutor(_READERS) as pool:
            for one in pool.map(digest, (entry.place for entry in self.entries)):
                whole.update(one)
        return whole.hexdigest()[:32]

    def missing(self) -> list[str]:
        """Lists the files that do not exist; opens none."""
        places = [entry.place for entry in self.entries]
        return [p for p in places if isinstance(p, str) and not os.path.isfile(p)]
