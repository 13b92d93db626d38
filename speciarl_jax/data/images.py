"""Decodes image files to pixels, and handles broken images."""

import io
import threading
import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
from absl import logging
from PIL import Image, ImageOps, UnidentifiedImageError

ON_BROKEN = ("raise", "skip")
# Largest ratio of the longer to the shorter side that the image processor accepts.
MOST_ASPECT = 200
# The run stops at more broken images than this number and this share of the data set.
_TOLERATED, _TOLERATED_SHARE = 10, 0.1
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

    Args:
      data: content of a file that Pillow reads (JPEG, PNG, WebP, GIF, BMP, TIFF, ...); the first
        frame of several.
      where: name of the image in error messages.

    Raises:
      BrokenImageError: no image, cut short, far too large, or far too long and thin.
    """
    try:
        with warnings.catch_warnings():
            # Odd metadata is ignored; a suspicious size is an error.
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(data)) as image:
                pixels = np.asarray(_to_rgb(ImageOps.exif_transpose(image)))
    except UnidentifiedImageError:
        found = "is empty" if not data else "is no image"
        raise BrokenImageError(where, found) from None
    except (Image.DecompressionBombWarning, Image.DecompressionBombError):
        most = f"{Image.MAX_IMAGE_PIXELS:,}"
        raise BrokenImageError(where, f"has more than {most} pixels, too many to read") from None
    except Exception as error:  # Pillow's plugins raise nearly anything on damaged files.
        raise BrokenImageError(where, f"cannot be decoded ({error})") from error
    height, width = pixels.shape[:2]
    if max(height, width) > MOST_ASPECT * min(height, width):
        raise BrokenImageError(where, f"is {width} x {height} px, too long and thin")
    return pixels


def read(path: str) -> np.ndarray:
    """Reads the pixels of an image file, as `decode`.

    Raises:
      BrokenImageError: the file is missing or broken.
    """
    try:
        with open(path, "rb") as file:
            data = file.read()
    except OSError as error:
        raise BrokenImageError(path, f"cannot be read ({error.strerror})") from None
    return decode(data, path)


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I") or image.mode == "F":
        # 16 bits a pixel; Pillow's own conversion would clip at 255.
        values = np.clip(np.asarray(image, np.float32), 0, 65535)
        if values.max(initial=0) > 255:
            values = values / 257
        return Image.fromarray(values.astype(np.uint8)).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        ground = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(ground, image).convert("RGB")
    return image.convert("RGB")


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
        raise BrokenImageError(lost[0], f"is missing ({len(lost)} such files)")


def check_first_row(source: Any, name: str) -> None:
    """Refuses a source whose first row lacks what batches, verdicts and reports need.

    Args:
      name: name of the data set in error messages.

    Raises:
      ValueError: there is no row, a field is missing, or `image_id` does not fit into 32 bits.
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
