"""The paper's training set with the 3B policy on one chip of 16 GB; the base weights are int8.

Memory and time: launch/plans/cub_3b_one_chip.txt.
"""

import ml_collections

from configs import cub_3b


def get_config() -> ml_collections.ConfigDict:
    """Changes `cub_3b.py` to take less memory."""
    config = cub_3b.get_config()
    config.model.base_weights = "int8"
    config.rollout.cache_bytes = 0
    config.rollout.max_images_per_chunk = 4
    config.train.micro_batches = 128  # one image
    config.evaluation.batch_size = 16
    return config
