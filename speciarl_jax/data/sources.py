"""Opens the data set that a configuration names."""

from collections.abc import Mapping, Sequence
from typing import Any

import ml_collections

from speciarl_jax.data import image_files, images
from speciarl_jax.runtime import plugins


def open_source(
    config: ml_collections.ConfigDict, seed: int, **changes: Any
) -> Sequence[Mapping[str, Any]]:
    """Opens the data set of `config.data`.

    Args:
      **changes: options that replace those of `config.data.options`.

    Raises:
      ValueError: an unknown data set, missing files, or content that does not fit.
      TypeError: an option that the data set does not have.
    """
    image_files.limit_pixels(config.data.get("max_decoded_pixels"))
    options = {**config.data.options, **changes}
    source = plugins.find("data", config.data.name, "Source")(seed=seed, **options)
    broken = config.data.on_decode_error
    if broken not in images.ON_BROKEN:
        raise ValueError(
            f"config.data.on_decode_error is {broken!r}; choose one of {images.ON_BROKEN}"
        )
    return source if broken == "raise" else images.WithoutBroken(source)
