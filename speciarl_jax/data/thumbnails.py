"""Images small enough to be carried inside a page."""

import base64
import io
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from PIL import Image

SIDES = (112, 96, 80, 64, 48, 32)  # pixels, from the nicest to the smallest
_QUALITY = 65
_TRIED = 24  # images that tell how many bytes the others will take


def shrink(image: np.ndarray, side: int) -> np.ndarray:
    """uint8 [H, W, 3], its longer side at most `side` pixels; a smaller image stays as it is."""
    image = Image.fromarray(np.asarray(image, np.uint8))
    image.thumbnail((side, side), Image.Resampling.LANCZOS)
    return np.asarray(image)


def data_uri(image: np.ndarray) -> str:
    """A uint8 [H, W, 3] image as a WebP data URI."""
    file = io.BytesIO()
    Image.fromarray(image).save(file, "WEBP", quality=_QUALITY, method=4)
    return "data:image/webp;base64," + base64.b64encode(file.getvalue()).decode()


def fitting(images: Mapping[Any, np.ndarray], order: Iterable[Any], budget: int) -> dict[Any, str]:
    """Data URIs that together stay within a budget.

    The largest of `SIDES` at which all are likely to fit is taken. If even the smallest is too
    large, the images that come last in `order` have none.

    Args:
      images: name -> uint8 [H, W, 3].
      order: the names, the most important ones first.
      budget: bytes of all URIs.
    """
    names = [name for name in order if name in images]
    tried = names[:: max(1, len(names) // _TRIED)]
    for side in SIDES:
        sizes = [len(data_uri(shrink(images[name], side))) for name in tried]
        if not tried or np.mean(sizes) * len(names) <= 0.95 * budget:
            break
    found, total = {}, 0
    for name in names:
        uri = data_uri(shrink(images[name], side))
        if total + len(uri) > budget:
            break
        found[name], total = uri, total + len(uri)
    return found
