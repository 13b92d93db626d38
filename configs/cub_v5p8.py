"""The paper's training set and policy (7B) on TPU v5p-8, 4 chips of 95 GB; `cub.py` otherwise.

What it takes: launch/plans/cub_v5p8.txt.
"""

import ml_collections

from configs import cub


def get_config() -> ml_collections.ConfigDict:
    """`cub.py` in parts that fit."""
    config = cub.get_config()
    # No chip gathers weights while it decodes: each has a copy.
    config.mesh.data, config.mesh.fsdp, config.mesh.tensor = 4, 1, 1
    config.rollout.max_images_per_chunk = 64
    config.train.micro_batches = 16  # two images a chip
    return config
