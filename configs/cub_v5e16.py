"""The paper's training set and policy (7B) on 16 chips of TPU v5e, 16 GB each; `cub.py` otherwise.

What it takes: launch/plans/cub_v5e16.txt.
"""

import ml_collections

from configs import cub


def get_config() -> ml_collections.ConfigDict:
    """`cub.py` in parts that fit."""
    config = cub.get_config()
    # No chip gathers weights while it decodes: four chips hold a copy.
    config.mesh.data, config.mesh.fsdp, config.mesh.tensor = 4, 1, 4
    config.rollout.max_images_per_chunk = 64
    config.train.micro_batches = 32  # an image for each copy
    return config
