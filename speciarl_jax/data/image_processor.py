"""Loads the image processor of a checkpoint folder: how images are resized and cut into patches."""

import pathlib
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from speciarl_jax.models import safetensors_io
from speciarl_jax.runtime.messages import first_line

# The names under which transformers has had the image processor of Qwen's policies.
_PROCESSORS = re.compile(r"Qwen2(VL|_5_VL|_5VL|\.5VL)ImageProcessor(Fast|Pil)?")


def _processor_class() -> Any:
    # It imports torch where that is installed: seconds that no refusal should wait for.
    from transformers import Qwen2VLImageProcessorPil

    return Qwen2VLImageProcessorPil


def load(folder: str | pathlib.Path, max_pixels: int | None = None) -> Any:
    """Loads the image processor of a checkpoint folder, in the variant that needs no torch.

    Args:
      folder: holds `preprocessor_config.json`, or the `processor_config.json` that transformers 5
        saves, with the same settings under `image_processor`.
      max_pixels: larger images are shrunk to this number of pixels; None, or a value above the
        checkpoint's own limit, keeps that limit.

    Raises:
      ValueError: the file is missing, damaged or of another model, or `max_pixels` is below the
        checkpoint's `min_pixels`.
    """
    path, settings = _processor_settings(pathlib.Path(folder))
    kind = settings.get("image_processor_type")
    if not _PROCESSORS.fullmatch(str(kind)):
        raise ValueError(
            f"{path} describes {f'a {kind}' if kind else 'no image processor'}; images "
            "are read with Qwen2VLImageProcessor, so take the file of the policy's checkpoint"
        )
    settings = _with_edges(path, settings)
    try:
        processor = _processor_class().from_dict(settings)
        # Most settings are looked at when an image is.
        processor(images=[np.zeros((8, 8, 3), np.uint8)], input_data_format="channels_last")
    except Exception as error:  # of many kinds
        raise ValueError(
            f"{path} makes no image processor ({first_line(error)}); take the file of the "
            "checkpoint"
        ) from error
    if max_pixels is None or max_pixels >= processor.size["longest_edge"]:
        return processor
    fewest = processor.size["shortest_edge"]
    if max_pixels < fewest:
        raise ValueError(
            f"config.data.max_pixels is {max_pixels}, but the image processor of {folder} enlarges "
            f"images to {fewest} pixels (min_pixels); raise max_pixels to at least that"
        )
    return _processor_class().from_dict(settings, max_pixels=max_pixels)


def _processor_settings(folder: pathlib.Path) -> tuple[pathlib.Path, dict[str, Any]]:
    """Reads the settings of the image processor, from the file that transformers would choose."""
    path = folder / "processor_config.json"
    if path.exists() and "image_processor" in (settings := safetensors_io.read_json(path)):
        return path, settings["image_processor"]
    path = folder / "preprocessor_config.json"
    if not path.exists():
        raise ValueError(
            f"{folder} holds no preprocessor_config.json, and no processor_config.json with an "
            "image_processor; copy the one of the checkpoint there"
        )
    return path, safetensors_io.read_json(path)


def _with_edges(path: pathlib.Path, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the settings with the limits of an image's pixels as `size`, whatever says them.

    They stand under `min_pixels` and `max_pixels`, beside `size` or in it, or as `shortest_edge`
    and `longest_edge` of `size`. Those beside it come first, as in transformers.

    Raises:
      ValueError: a limit is no whole number above 0, or the larger is the first.
    """
    settings, size = dict(settings), settings.get("size") or {}
    if not isinstance(size, Mapping):
        raise ValueError(
            f"{path} has size {size!r}, which must be an object with shortest_edge and "
            "longest_edge; take the file of the checkpoint"
        )
    edges = dict(_processor_class().size)
    for edge, pixels in (("shortest_edge", "min_pixels"), ("longest_edge", "max_pixels")):
        for value in (size.get(edge), size.get(pixels), settings.pop(pixels, None)):
            edges[edge] = edges[edge] if value is None else value
        if type(edges[edge]) is not int or edges[edge] < 1:
            raise ValueError(
                f"{path} has {pixels} {edges[edge]!r}, which must be a whole number of pixels of "
                "at least 1; take the file of the checkpoint"
            )
    if edges["shortest_edge"] > edges["longest_edge"]:
        raise ValueError(
            f"{path} has min_pixels {edges['shortest_edge']} above max_pixels "
            f"{edges['longest_edge']}; take the file of the checkpoint"
        )
    return settings | {"size": edges}
