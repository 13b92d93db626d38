"""Finds the images of a data set by what other programs call them."""

import os
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

# Fields of a row that name its image.
_NAMES = ("key", "path", "name", "file_name")
_SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff"),
    *(".avif", ".heic", ".ppm", ".jp2"),
)

# What tells an image from others: its `image_id` and its name. The id alone is a hash of 31 bits.
Place = tuple[int, str]
_Parts = tuple[str, ...]


class ImageIndex:
    """Images by id and by path. A mixture may show an image in several rows."""

    def __init__(self, rows: Iterable[Mapping[str, Any]]):
        """Takes the rows of a data set, without the pixels."""
        self._by_id: dict[int, set[Place]] = {}
        # Whole names, and all their ends, with the suffix of the file and without.
        self._whole: list[dict[_Parts, set[Place]]] = [{}, {}]
        self._ends: list[dict[_Parts, set[Place]]] = [{}, {}]
        for row in rows:
            place = self.place(row)
            self._by_id.setdefault(place[0], set()).add(place)
            for name in (row[field] for field in _NAMES if isinstance(row.get(field), str)):
                for kind, parts in enumerate(_spellings(name)):
                    self._whole[kind].setdefault(parts, set()).add(place)
                    for first in range(len(parts)):
                        self._ends[kind].setdefault(parts[first:], set()).add(place)

    def place(self, row: Mapping[str, Any]) -> Place:
        """Returns what tells the image of a row from others."""
        return row["image_id"], str(row.get("key", ""))

    def name(self, row: Mapping[str, Any]) -> str:
        """Returns what messages call the image of a row."""
        return str(row.get("key") or row["image_id"])

    def find(self, image_id: int | str | None, path: str | None) -> Place | None:
        """Finds an image; None if there is no such image.

        Args:
          image_id: of the row, maybe as a text; or a path. It comes before `path`.
          path: its name in the data set; the end of that name; or a longer path that ends in it.
            The suffix of the file may lack or differ.

        Raises:
          ValueError: several images are called so.
        """
        found: set[Place] = set()
        if isinstance(image_id, int) or (image_id or "").strip().isdecimal():
            found = self._by_id.get(int(image_id), set())
            if len(found) > 1 and path is not None:
                found = found & self._of_path(path) or found
        if not found and isinstance(image_id, str):
            found = self._of_path(image_id)
        if image_id is None and path is not None:
            found = self._of_path(path)
        if len(found) > 1:
            names = ", ".join(f"{name!r} ({number})" for number, name in sorted(found)[:3])
            raise ValueError(
                f"{(path if image_id is None else image_id)!r} may be any of {len(found)} images: "
                f"{names}; give more of the path, or the image_id (the number)"
            )
        return next(iter(found), None)

    def _of_path(self, path: str) -> set[Place]:
        for parts, whole, ends in zip(_spellings(path), self._whole, self._ends, strict=True):
            if found := whole.get(parts) or ends.get(parts):
                return found
            for first in range(1, len(parts)):
                if found := whole.get(parts[first:]):
                    return found
        return set()


def _spellings(path: str) -> Sequence[_Parts]:
    """Splits a path, with the suffix of the file and without."""
    text = unicodedata.normalize("NFC", path.strip()).replace("\\", "/")
    parts = tuple(part for part in text.split("/") if part not in ("", "."))
    if not parts:
        return (), ()
    stem, suffix = os.path.splitext(parts[-1])
    known = stem and suffix.lower() in _SUFFIXES
    return parts, (*parts[:-1], stem) if known else parts


def describe(row: Mapping[str, Any]) -> str:
    """Writes how a line of answers names the image of a row."""
    key = row.get("key")
    return f'"image_id": {row["image_id"]}' + (f' or "path": "{key}"' if key else "")
