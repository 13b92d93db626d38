"""Decodes image files to pixels, and handles broken images."""

import errno
import os
import stat
import threading
from collections.abc import Mapping
from typing import Any

import numpy as np
from absl import logging

from speciarl_jax.data import image_files

ON_BROKEN = ("raise", "skip")
# Largest ratio of the longer to the shorter side that the image processor accepts.
MOST_ASPECT = 200
# The run stops at more broken images than this number and this share of the data set.
_TOLERATED, _TOLERATED_SHARE = 10, 0.1
# A larger file is no image that could be decoded within `config.data.max_decoded_pixels`; it may be
# a sparse one, which takes little room on the disk and all of the memory.
_MOST_BYTES = 2**31
# Fields that every row must have.
_FIELDS = ("image", "image_id", "label_id", "label")
_BLANK = np.full((56, 56, 3), 128, np.uint8)


class BrokenImageError(ValueError):
    """An image that cannot be read; the message names the file and what to do.

    Attributes:
      reason: the message without the remedy for training.
    """

    def __init__(self, where: str, what: str):
        """Args: where: name of the image. what: what is wrong with it, beginning with a verb."""
        self.reason = f"{where} {what}"
        super().__init__(
            f"{self.reason}; restore or remove it, or set config.data.on_decode_error='skip' to "
            "go on without such images (python -m speciarl_jax.tools.check_data lists them all)"
        )


def decode(data: bytes, where: str) -> np.ndarray:
    """Decodes an image, upright (EXIF) and on white where transparent: uint8 [height, width, 3].

    A JPEG or JPEG 2000 file of more than `config.data.max_decoded_pixels` is decoded at a half
    or a quarter of its size.

    Args:
      data: content of a file that Pillow reads (JPEG, PNG, WebP, GIF, BMP, TIFF, AVIF, ...); the
        first frame of several. HEIC needs pillow-heif.
      where: name of the image in error messages.

    Raises:
      BrokenImageError: no image, cut short, far too large, far too long and thin, or of brightness
        values without a meaning.
    """
    try:
        pixels = image_files.decode(data)
    except image_files.UnreadableError as error:
        raise BrokenImageError(where, str(error)) from None
    except Exception as error:  # Pillow's plugins raise nearly anything on damaged files.
        raise BrokenImageError(where, f"cannot be decoded ({error})") from error
    height, width = pixels.shape[:2]
    if max(height, width) > MOST_ASPECT * min(height, width):
        raise BrokenImageError(where, f"is {width} x {height} px, too long and thin")
    return pixels


def check_pixels(image: Any) -> None:
    """Refuses what is no image of three channels in bytes.

    The image processor would take it all the same, and make other numbers of it: values from 0 to 1
    would all be black, and transparent parts not white.

    Raises:
      ValueError: says its shape and dtype.
    """
    shape, dtype = np.shape(image), getattr(image, "dtype", type(image).__name__)
    if len(shape) != 3 or shape[2] != 3 or dtype != np.uint8:
        raise ValueError(
            f"an image is {dtype} {list(shape)}; it must be uint8 [height, width, 3], as "
            "speciarl_jax.data.images.decode makes it of any file"
        )


def read(path: str) -> np.ndarray:
    """Reads the pixels of an image file, as `decode`.

    Raises:
      BrokenImageError: the file is missing, no file (a pipe, a device), or broken.
    """
    try:
        data = read_bytes(path)
    except OSError as error:
        raise BrokenImageError(path, _unreadable(path, error)) from None
    return decode(data, path)


def read_bytes(path: str | os.PathLike) -> bytes:
    """Reads a file of up to 2 GiB; opens no pipe or device, which may never end (OSError)."""
    state = os.stat(path)
    if not stat.S_ISREG(state.st_mode):
        raise OSError(errno.EINVAL, "it is no regular file")
    if state.st_size > _MOST_BYTES:
        raise OSError(errno.EFBIG, f"it has {state.st_size:,} bytes, too many for an image")
    with open(path, "rb") as file:
        return file.read()


def _unreadable(path: str, error: OSError) -> str:
    hint = ""
    if "\\" in path:
        hint = "; if the path was written on Windows, replace its backslashes by '/'"
    return f"cannot be read ({error.strerror}){hint}"


def describe(source: Any, index: int) -> dict[str, Any]:
    """Returns a row without its image; decodes it only if the source has no `describe`."""
    if hasattr(source, "describe"):
        return source.describe(index)
    return {key: value for key, value in source[index].items() if key != "image"}


def missing(source: Any) -> list[str]:
    """Lists the files of a source that do not exist, as far as the source can tell."""
    return source.missing() if hasattr(source, "missing") else []


def check_files(source: Any) -> None:
    """Refuses a source with missing files; opens no file (BrokenImageError)."""
    if lost := missing(source):
        what = "is no regular file" if os.path.exists(lost[0]) else "is missing"
        hint = ""
        if "\\" in lost[0]:
            hint = ", and its name holds a backslash: write paths with '/'"
        raise BrokenImageError(lost[0], f"{what} ({len(lost)} such files{hint})")


def check_first_row(source: Any, name: str) -> None:
    """Refuses a source whose first row lacks what batches, verdicts and reports need.

    Args:
      name: name of the data set in error messages.

    Raises:
      ValueError: there is no row, a field is missing, `image` has not three channels of bytes, or
        `image_id` does not fit into 32 bits.
      BrokenImageError: the image cannot be read.
    """
    if not len(source):
        raise ValueError(f"the data set {name!r} has no images; check its options")
    row = source[0]
    if lacking := [field for field in _FIELDS if field not in row]:
        raise ValueError(
            f"rows of the data set {name!r} lack {lacking}; its class Source must give rows with "
            f"{list(_FIELDS)}"
        )
    image = row["image"]
    for one in image if isinstance(image, list | tuple) else [image]:
        check_pixels(one)
    image_id = row["image_id"]
    if not isinstance(image_id, int) or not 0 <= image_id < 2**32:
        raise ValueError(
            f"image_id of the first row of the data set {name!r} is {image_id!r}; it must be a "
            "Python int from 0 to 2**32 - 1, so cut a longer hash to 32 bits"
        )


class WithoutBroken:
    """A source whose broken images become rows of weight 0, marked `skipped`.

    They keep their place, so the order, the batches and the shares of the processes stay the same.
    A skipped row is never sampled, judged, trained on or scored.

    Attributes:
      skipped: row -> error, as seen so far.
    """

    def __init__(self, source: Any):
        """Args: source: random access to rows; a broken image raises `BrokenImageError`."""
        self._source = source
        self._lock = threading.Lock()
        self.skipped: dict[int, str] = {}

    def __len__(self) -> int:
        return len(self._source)

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._source, name)  # AttributeError if the source lacks it, too
        return (lambda seed: self._another(found(seed))) if name == "with_seed" else found

    def _another(self, source: Any) -> "WithoutBroken":
        """Wraps the source of another epoch; the same source keeps its record of errors."""
        return self if source is self._source else WithoutBroken(source)

    def describe(self, index: int) -> dict[str, Any]:
        """A row without its image."""
        return describe(self._source, index)

    def __getitem__(self, index: int) -> Mapping[str, Any]:
        """Reads a row; a broken image gives a blank one and `skipped`.

        Raises:
          ValueError: too many images are broken.
        """
        try:
            return self._source[index]
        except BrokenImageError as error:
            self._note(index, str(error))
        return {**self.describe(index), "image": _BLANK, "skipped": True}

    def _note(self, index, error):
        with self._lock:
            new = index not in self.skipped
            self.skipped[index] = error
            count = len(self.skipped)
        if new:
            logging.warning("skipped image %d (%d so far): %s", index, count, error)
        if count > max(_TOLERATED, _TOLERATED_SHARE * len(self)):
            raise ValueError(
                f"{count} of {len(self)} images are broken, too many to skip; check the "
                f"data with python -m speciarl_jax.tools.check_data. The last one: {error}"
            )
