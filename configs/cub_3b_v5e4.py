"""The paper's training set with the 3B policy on 4 chips of TPU v5e, 16 GB each.

Memory and time: launch/plans/cub_3b_v5e4.txt.
"""

import ml_collections

from configs import cub_3b


def get_config() -> ml_collections.ConfigDict:
    """Changes mesh, chunks and micro-batches of `cub_3b.py`."""
    config = cub_3b.get_config()
    # Two chips share a copy of the weights, so that no chip gathers weights while it decodes.
    config.mesh.data, config.mesh.fsdp, config.mesh.tensor = 2, 1, 2
    config.rollout.cache_bytes = 0
    config.rollout.max_images_per_chunk = 16
    config.train.micro_batches = 64  # one image per copy
    config.evaluation.batch_size = 64
    return config
