"""From the bytes of an image file to pixels, and what happens to images that are broken."""

import io
import threading
import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
from absl import logging
from PIL import Image, ImageOps, UnidentifiedImageError

ON_BROKEN = ("raise", "skip")
# The image processor refuses images that are longer than so many times their width.
MOST_ASPECT = 200
# So many broken images, or this share of the set if it is more, are an accident of the set.
_TOLERATED, _TOLERATED_SHARE = 10, 0.1
# What a row has at least.
_FIELDS = ("image", "image_id", "label_id", "label")
_BLANK = np.full((56, 56, 3), 128, np.uint8)


class BrokenImageError(ValueError):
    """An image that cannot be read; the message names the file and what to do.

    Attributes:
      reason: the message without what to do about it in training.
    """

    def __init__(self, where: str, what: str):
        """Args: where: names the image. what: is wrong with it, a verb first."""
        self.reason = f"{where} {what}"
        super().__init__(
            f"{self.reason}; restore or remove it, or set config.data.on_decode_error='skip' to "
            "go on without such images (python -m speciarl_jax.tools.check_data lists them all)"
        )


def decode(data: bytes, where: str) -> np.ndarray:
    """Pixels of an encoded image, upright, on white where it is transparent.

    Args:
      data: a file that Pillow can read (JPEG, PNG, WebP, GIF, BMP, TIFF, ...); of several frames
        the first counts.
      where: what errors call it.

    Returns:
      uint8 [height, width, 3].

    Raises:
      BrokenImageError: no image, cut short, far too large, or far too long and thin.
    """
    try:
        with warnings.catch_warnings():
            # Odd metadata is no reason to warn; a suspicious size is one to stop.
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
    """Pixels of an image file, as `decode`.

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
    """A row without its image; not decoded where the source can tell without."""
    if hasattr(source, "describe"):
        return source.describe(index)
    return {key: value for key, value in source[index].items() if key != "image"}


def check_files(source: Any) -> None:
    """Refuses a source whose files are not all there; opens none of them.

    Raises:
      BrokenImageError: names the first, and how many are missing.
    """
    missing = source.missing() if hasattr(source, "missing") else []
    if missing:
        raise BrokenImageError(missing[0], f"is missing ({len(missing)} such files)")


def check_first_row(source: Any, name: str) -> None:
    """Refuses a source whose rows are not what batches, verdicts and reports need.

    Reads one image, that of the first row.

    Args:
      source: random access to rows.
      name: what errors call it.

    Raises:
      ValueError: there is no row, or the first lacks a field or has an `image_id` that does not fit
        into 32 bits.
      BrokenImageError: the image cannot be read.
    """
    if not len(source):
        raise ValueError(f"the data set {name!r} has no images; check its options")
    row = source[0]
    if missing := [field for field in _FIELDS if field not in row]:
        raise ValueError(
            f"rows of the data set {name!r} lack {missing}; its class Source must give rows with "
            f"{list(_FIELDS)}"
        )
    image_id = row["image_id"]
    if not isinstance(image_id, int) or not 0 <= image_id < 2**32:
        raise ValueError(
            f"image_id of the first row of the data set {name!r} is {image_id!r}; it must be a "
            "Python int from 0 to 2**32 - 1, so cut a longer hash to 32 bits"
        )


class WithoutBroken:
    """A source whose broken images become rows of weight 0 (`skipped`), in their place.

    So the order, the batches and the share of each process are what they would be without the
    damage, and a resumed run sees the same. A left-out row is never answered, judged, learned from
    or scored.

    Attributes:
      skipped: the errors seen so far, by row.
    """

    def __init__(self, source: Any):
        """Args: source: random access to rows; a broken image raises `BrokenImageError`."""
        self._source = source
        self._lock = threading.Lock()
        self.skipped: dict[int, str] = {}

    def __len__(self) -> int:
        return len(self._source)

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._source, name)  # what the source has not, this has not
        return (lambda seed: self._another(found(seed))) if name == "with_seed" else found

    def _another(self, source: Any) -> "WithoutBroken":
        """Of another epoch; what was left out of the same images is remembered."""
        return self if source is self._source else WithoutBroken(source)

    def describe(self, index: int) -> dict[str, Any]:
        """A row without its image."""
        return describe(self._source, index)

    def __getitem__(self, index: int) -> Mapping[str, Any]:
        """A row; with `skipped` and a blank image where the image is broken.

        Raises:
          ValueError: more images are broken than can be an accident.
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
            logging.warning("left out image %d (%d so far): %s", index, count, error)
        if count > max(_TOLERATED, _TOLERATED_SHARE * len(self)):
            raise ValueError(
                f"{count} of {len(self)} images are broken, too many to leave out; check the "
                f"data with python -m speciarl_jax.tools.check_data. The last one: {error}"
            )
