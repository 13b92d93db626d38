"""The paper's training set with the 3B policy on one chip of 16 GB; the base is kept in int8.

What it takes: launch/plans/cub_3b_one_chip.txt.
"""

import ml_collections

from configs import cub_3b


def get_config() -> ml_collections.ConfigDict:
    """`cub_3b.py` in smaller parts."""
    config = cub_3b.get_config()
    config.model.base_weights = "int8"
    config.rollout.cache_bytes = 0
    config.rollout.max_images_per_chunk = 4
    config.train.micro_batches = 128  # an image
    config.evaluation.batch_size = 16
    return config
