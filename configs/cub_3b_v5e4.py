"""The paper's training set with the 3B policy on 4 chips of TPU v5e, 16 GB each.

What it takes: launch/plans/cub_3b_v5e4.txt.
"""

import ml_collections

from configs import cub_3b


def get_config() -> ml_collections.ConfigDict:
    """`cub_3b.py` in parts that fit."""
    config = cub_3b.get_config()
    # No chip gathers weights while it decodes: two chips hold a copy.
    config.mesh.data, config.mesh.fsdp, config.mesh.tensor = 2, 1, 2
    config.rollout.cache_bytes = 0
    config.rollout.max_images_per_chunk = 16
    config.train.micro_batches = 64  # an image for each copy
    config.evaluation.batch_size = 64
    return config
