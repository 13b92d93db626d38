"""The paper's training set and policy (7B) on 16 chips of TPU v5e, 16 GB each.

Memory and time: launch/plans/cub_v5e16.txt.
"""

import ml_collections

from configs import cub


def get_config() -> ml_collections.ConfigDict:
    """Changes mesh, chunks and micro-batches of `cub.py`."""
    config = cub.get_config()
    # Four chips share a copy of the weights, so that no chip gathers weights while it decodes.
    config.mesh.data, config.mesh.fsdp, config.mesh.tensor = 4, 1, 4
    config.rollout.max_images_per_chunk = 64
    config.train.micro_batches = 32  # one image per copy
    return config
