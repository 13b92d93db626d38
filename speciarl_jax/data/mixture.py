"""Mixes several data sets into one, each with a share of the images.

config.data.name = "mixture"
config.data.options = ConfigDict({
    "parts": {"birds": {"name": "tfds_images", "weight": 2.0, "options": {...}},
              "mine": {"name": "folder", "weight": 1.0, "options": {...}},
              "others": {"name": "folder", "weight": 1.0, "labelled": False, "options": {...}}},
    "size": 0})
"""

import bisect
import copy
import hashlib
import itertools
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from speciarl_jax.data import images, label_tree
from speciarl_jax.runtime import plugins


def shares(weights: list[float], lengths: list[int], size: int) -> list[int]:
    """Computes how many images of each part are in an epoch.

    Args:
      weights: relative weights of the parts, above 0; all None takes every image once.
      size: images of an epoch; 0 for the largest epoch in which no image repeats.

    Returns:
      Counts whose sum is `size`; the largest remainders are rounded up.

    Raises:
      ValueError: a weight is missing or not above 0, or `size` is below 0.
    """
    if all(weight is None for weight in weights):
        weights = [float(n) for n in lengths]
    if any(weight is None or not weight > 0 for weight in weights) or size < 0:
        raise ValueError(
            f"the weights of a mixture are {weights} and its size {size}; give every part a weight "
            "above 0 or none of them, and a size that is not below 0"
        )
    total = sum(weights)
    if not size:
        size = int(min(n * total / w for n, w in zip(lengths, weights, strict=True)) + 1e-9)
    exact = size * np.asarray(weights) / total
    counts = (exact + 1e-9).astype(int)
    counts[np.argsort(counts - exact, kind="stable")[: size - counts.sum()]] += 1
    return counts.tolist()


class Source:
    """Random access to a mixture.

    If a part has more images than its share, each seed (and so each epoch) draws others. If it has
    fewer, they repeat; the numbers of repetitions differ by at most one.

    Attributes:
      label_tree: tree of the labels of all labelled parts, or None if one of them has none.
    """

    def __init__(
        self,
        *,
        parts: Mapping[str, Mapping[str, Any]],
        seed: int,
        common: Mapping[str, Any] | None = None,
        size: int = 0,
    ):
        """Opens the parts.

        Args:
          parts: name -> `name` of a module of `speciarl_jax/data`, `options` of its `Source`,
            `weight` (None or missing: every image once), and `labelled`. With False the labels of
            its images are not used: only config.loss.kl_unlabelled learns from them.
          common: options of every part; a part's own options take precedence.
          size: images of an epoch; 0 for the largest epoch in which no image repeats.

        Raises:
          ValueError: no part, a part that cannot be opened, or weights that do not fit.
        """
        if not parts:
            raise ValueError("a mixture needs parts; set config.data.options.parts")
        names = sorted(parts)
        for name in names:
            unknown = set(parts[name]) - {"name", "options", "weight", "labelled"}
            if unknown or "name" not in parts[name]:
                raise ValueError(
                    f"part {name!r} of the mixture has the keys {sorted(parts[name])}; it needs "
                    "'name', and may have 'options', 'weight' and 'labelled'"
                )
        if not any(parts[name].get("labelled", True) for name in names):
            raise ValueError("no part of the mixture has labels; leave out 'labelled' in one")
        self._parts, self._names, self._size = parts, names, size
        self._common = dict(common or {})
        self._open([self._source(name, seed) for name in names], seed)

    def _source(self, name, seed):
        part = self._parts[name]
        source = plugins.find("data", part["name"], "Source")
        return source(seed=seed, **{**self._common, **part.get("options", {})})

    def _open(self, sources, seed):
        self._sources = sources
        weights = [self._parts[name].get("weight") for name in self._names]
        lengths = [len(source) for source in sources]
        counts = shares(weights, lengths, self._size)
        self._ends = list(itertools.accumulate(counts))
        self._orders = [
            _draw(length, count, seed, number)
            for number, (length, count) in enumerate(zip(lengths, counts, strict=True))
        ]
        trees = [
            label_tree.read(source)
            for name, source in zip(self._names, sources, strict=True)
            if self._parts[name].get("labelled", True)
        ]
        self.label_tree = None if None in trees else label_tree.merge(trees)

    def __len__(self) -> int:
        return self._ends[-1]

    def _find(self, index: int) -> tuple[int, int]:
        """Returns the number of the part, and of the image within it."""
        if not 0 <= index < len(self):
            raise IndexError(index)
        part = bisect.bisect_right(self._ends, index)
        start = self._ends[part - 1] if part else 0
        return part, int(self._orders[part][index - start])

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Reads a row; `part` is the name of the part it belongs to."""
        part, place = self._find(index)
        return self._named(self._sources[part][place], part)

    def describe(self, index: int) -> dict[str, Any]:
        """Returns a row without its image."""
        part, place = self._find(index)
        return self._named(images.describe(self._sources[part], place), part)

    def _named(self, row, part):
        # Two folders may hold files of the same name.
        name = self._names[part]
        image_id = row["image_id"] ^ zlib.crc32(name.encode()) & 0x7FFFFFFF
        row = {**row, "image_id": image_id, "part": name}
        if self._parts[name].get("labelled", True):
            return row
        return {**row, "label_id": "", "label": "", "unlabelled": True}

    def with_seed(self, seed: int) -> "Source":
        """Returns the mixture of another epoch; shares the parts that do not depend on the seed."""
        other = copy.copy(self)
        sources = [
            source.with_seed(seed) if hasattr(source, "with_seed") else self._source(name, seed)
            for name, source in zip(self._names, self._sources, strict=True)
        ]
        other._open(sources, seed)
        return other

    @property
    def unlabelled(self) -> list[str]:
        """Names of the parts whose labels are not used."""
        return [name for name in self._names if not self._parts[name].get("labelled", True)]

    @property
    def fingerprint(self) -> str:
        """Hash that changes with the images of a part, its share, and the order."""
        digest = hashlib.sha256(str(self._ends).encode())
        for name, source in zip(self._names, self._sources, strict=True):
            known = "" if self._parts[name].get("labelled", True) else " without labels"
            digest.update(f"{name} {getattr(source, 'fingerprint', len(source))}{known}\n".encode())
        return digest.hexdigest()[:32]

    @property
    def content_fingerprint(self) -> str:
        """Hash that changes with the content of an image of a part."""
        digest = hashlib.sha256()
        for name, source in zip(self._names, self._sources, strict=True):
            digest.update(f"{name} {getattr(source, 'content_fingerprint', '')}\n".encode())
        return digest.hexdigest()[:32]

    def missing(self) -> list[str]:
        """Lists the files of all parts that do not exist."""
        return list(itertools.chain.from_iterable(map(images.missing, self._sources)))


def _draw(length: int, count: int, seed: int, part: int) -> np.ndarray:
    """Draws `count` sorted numbers below `length`; how often they occur differs by at most one."""
    whole, rest = divmod(count, length)
    rng = np.random.default_rng([seed, part])
    extra = rng.permutation(length)[:rest]
    return np.sort(np.concatenate([np.tile(np.arange(length), whole), extra]))
