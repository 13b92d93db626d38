"""`cub_v5e16.py`, which decodes with weights, keys and values in int8.

Sampling then takes less than half of the time, by the bounds of launch/plans/cub_v5e16_int8.txt,
and draws from a policy a little apart from the one that learns (`update/sampler_kl`).
"""

import ml_collections

from configs import cub_v5e16


def get_config() -> ml_collections.ConfigDict:
    """Changes decoding of `cub_v5e16.py`."""
    config = cub_v5e16.get_config()
    config.rollout.decode_weights = "int8"
    config.rollout.kv_cache = "int8"
    # Caches of half the size: twice as many images at once, and half as often all weights are read.
    config.rollout.max_images_per_chunk = 128
    return config
