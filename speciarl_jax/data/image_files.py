"""Decodes the bytes of an image file to upright RGB, whatever its format, mode and size.

Nothing is guessed from the values: the mode of the file decides what white is. Of the metadata only
the orientation is read, and damage in it is ignored.
"""

import contextlib
import functools
import io
import math
import threading
import warnings
from collections.abc import Callable

import numpy as np
from PIL import ExifTags, Image, ImageFile, UnidentifiedImageError

from speciarl_jax.models import safetensors_io

# Endings of the files that are read in folders.
_HEIF_SUFFIXES = (".heic", ".heif", ".hif")
_SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".apng", ".webp", ".gif", ".bmp", ".dib"),
    *(".tif", ".tiff", ".avif", ".jp2", ".j2k", ".j2c", ".jpc", ".jpf", ".jpx"),
    *(".ppm", ".pgm", ".pbm", ".pnm"),
)
# Endings of images and videos that are not read; other files in a folder are no surprise.
FOREIGN_SUFFIXES = (
    *(".svg", ".jxl", ".psd", ".eps", ".pdf", ".raw", ".dng", ".cr2", ".cr3", ".nef", ".arw"),
    *(".orf", ".rw2", ".raf", ".exr", ".hdr", ".tga", ".ico", ".dcm", ".npy", ".mp4", ".mov"),
    *(".avi", ".mkv", ".webm", ".zip", ".tar", ".gz", ".tgz", ".7z", ".rar"),
)
HOW_TO_READ_HEIF = "pip install 'speciarl_jax[heic]' (pillow-heif)"
# Formats that can be decoded at a half or a quarter of their size.
_REDUCIBLE = ("JPEG", "MPO", "JPEG2000")
# What must be kept of a progressive JPEG grows with its own size, not with the reduced one. So it
# may have this many times the pixels of the limit.
_MOST_REDUCED = 8
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# Resampling in other programs may leave float values a little outside of 0 to 1.
_FLOAT_TOLERANCE = 1e-3
# Pillow's limit is one for all threads; it is lifted while a header is read.
_OPENING = threading.Lock()
_most_pixels: int | None = None


class UnreadableError(ValueError):
    """What is wrong with an image; a phrase that begins with a verb."""


def limit_pixels(most: int | None) -> None:
    """Sets for this process how many pixels an image may have once it is decoded.

    Args:
      most: a number of pixels above 0; None for the limit of Pillow.

    Raises:
      ValueError: `most` is not above 0.
    """
    global _most_pixels
    if most is not None and most < 1:
        raise ValueError(
            f"config.data.max_decoded_pixels is {most}; it must be above 0, or None for the limit "
            "of Pillow"
        )
    _most_pixels = most


@functools.cache
def reads_heif() -> bool:
    """Tells whether HEIC and HEIF can be read, and teaches Pillow to if pillow-heif is there."""
    try:
        import pillow_heif
    except ImportError:
        return False
    pillow_heif.register_heif_opener()
    return True


def suffixes() -> tuple[str, ...]:
    """Returns the endings of files that are images and can be read, in lower case."""
    return _SUFFIXES + (_HEIF_SUFFIXES if reads_heif() else ())


def is_foreign(suffix: str) -> bool:
    """Tells whether files with this ending hold images, or may hold some, that are not read."""
    return suffix in FOREIGN_SUFFIXES or suffix in _HEIF_SUFFIXES


def decode(data: bytes) -> np.ndarray:
    """Decodes an image, turns it upright, and puts transparent parts on white.

    16 bits a channel become 8 by division by 257, float values by multiplication by 255.

    Args:
      data: content of a file that Pillow reads; the first frame of several.

    Returns:
      uint8 [height, width, 3].

    Raises:
      UnreadableError: no image, too large, or brightness values that have no meaning.
      Exception: whatever Pillow's plugins raise on damaged files.
    """
    reads_heif()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # odd metadata
        with _open(data) as image:
            size = image.size
            _reduce(image)
            turn = _load(image)
            if turn is not None:
                image = image.transpose(turn)
            pixels = np.asarray(_to_rgb(image))
    if not pixels.size:
        raise UnreadableError(f"is {size[0]} x {size[1]} px, nothing to see")
    return pixels


def _open(data: bytes) -> ImageFile.ImageFile:
    with _OPENING:
        limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            return Image.open(io.BytesIO(data))
        except ValueError:
            # libavif refuses a whole AVIF file for damage in its EXIF item, unless the item has an
            # unknown type.
            if data[8:12] not in (b"avif", b"avis") or b"Exif" not in data:
                raise
            return Image.open(io.BytesIO(data.replace(b"Exif", b"none", 1)))
        except UnidentifiedImageError:
            raise UnreadableError(_unidentified(data)) from None
        finally:
            Image.MAX_IMAGE_PIXELS = limit


def _unidentified(data: bytes) -> str:
    if not data:
        return "is empty"
    if data.startswith(safetensors_io.LFS_POINTER):
        return "is a pointer of Git LFS, and not the image itself (git lfs pull fetches it)"
    if data[4:8] == b"ftyp" and data[8:12] in (b"heic", b"heix", b"hevc", b"heim", b"mif1"):
        if not reads_heif():
            return f"is HEIC, which needs {HOW_TO_READ_HEIF}"
    return "is no image"


def _reduce(image: ImageFile.ImageFile) -> None:
    """Asks for a half or a quarter of the size where an image is too large.

    Raises:
      UnreadableError: it has too many pixels even for that.
    """
    most = Image.MAX_IMAGE_PIXELS if _most_pixels is None else _most_pixels
    width, height = image.size
    if most is None or width * height <= most:
        return
    remedy = "raise config.data.max_decoded_pixels, or shrink it"
    if image.format not in _REDUCIBLE:
        raise UnreadableError(f"has more than {most:,} pixels, too many to read; {remedy}")
    if width * height > most * _MOST_REDUCED:
        raise UnreadableError(
            f"has more than {most * _MOST_REDUCED:,} pixels, too many even at reduced size; "
            f"{remedy}"
        )
    factor = 2 ** math.ceil(math.log2(math.sqrt(width * height / most)))
    if image.format == "JPEG2000":
        image.reduce = int(math.log2(factor))
    else:
        image.draft(None, (width // factor, height // factor))


def _load(image: ImageFile.ImageFile) -> Image.Transpose | None:
    """Decodes the pixels, and returns how to turn them."""
    if image.format == "TIFF":
        # Pillow turns TIFF after decoding, for which it reads all tags.
        with contextlib.suppress(Exception):
            turn = _TURNS.get(int(image.tag_v2.get(ExifTags.Base.Orientation, 1)))
            image.load_end = lambda: None
            image.load()
            return turn
    image.load()
    with contextlib.suppress(Exception):  # damaged metadata
        return _TURNS.get(int(image.getexif().get(ExifTags.Base.Orientation, 1)))
    return None


def _to_rgb(image: Image.Image) -> Image.Image:
    if scale := _scale(image.mode):
        stored = np.asarray(image)
        values = np.rint(scale(stored)).astype(np.uint8)
        if isinstance(clear := image.info.get("transparency"), int):
            values = np.where(stored == clear, np.uint8(255), values)
        return Image.fromarray(values).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        ground = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(ground, image).convert("RGB")
    return image.convert("RGB")


def _scale(mode: str) -> Callable[[np.ndarray], np.ndarray] | None:
    """Returns what brings the brightness values of a mode to 0..255; None for 8 bits."""
    if mode == "F":
        return _scale_float
    return _scale_16_bits if mode.startswith("I") else None


def _scale_16_bits(values: np.ndarray) -> np.ndarray:
    low, high = int(values.min(initial=0)), int(values.max(initial=0))
    if low < 0 or high > 65535:
        raise UnreadableError(
            f"has brightness values from {low} to {high}, of which nobody can say what is white; "
            "save it with 8 bits, or with 16 (0 to 65535)"
        )
    return values / 257


def _scale_float(values: np.ndarray) -> np.ndarray:
    low, high = float(np.min(values, initial=0)), float(np.max(values, initial=0))
    if not (low >= -_FLOAT_TOLERANCE and high <= 1 + _FLOAT_TOLERANCE):  # NaN is refused, too
        raise UnreadableError(
            f"has float brightness values from {low:g} to {high:g}, of which nobody can say what "
            "is white; save it with values from 0 to 1, or with 8 bits"
        )
    return np.clip(values, 0, 1) * 255
