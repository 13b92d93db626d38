"""The paper's training set and policy (7B) on TPU v5p-8, 4 chips of 95 GB.

Memory and time: launch/plans/cub_v5p8.txt.
"""

import ml_collections

from configs import cub


def get_config() -> ml_collections.ConfigDict:
    """Changes mesh, chunks and micro-batches of `cub.py`."""
    config = cub.get_config()
    # Each chip has a copy of the weights, so that none gathers weights while it decodes.
    config.mesh.data, config.mesh.fsdp, config.mesh.tensor = 4, 1, 1
    config.rollout.max_images_per_chunk = 64
    config.train.micro_batches = 16  # two images per chip
    return config
