"""The paper's training set with Qwen3-VL-2B on 4 chips of TPU v5e, 16 GB each.

python -m speciarl_jax.tools.plan --config=configs/cub_qwen3_vl_2b.py --topology=v5e:2x2 \
    --model=qwen3_vl_2b

Compiled: rollout 12.7 GiB a chip of 15.75, update 10.6 GiB.
"""

import ml_collections

from configs import cub


def get_config() -> ml_collections.ConfigDict:
    """Changes mesh, chunks and micro-batches of `cub.py`."""
    config = cub.get_config()
    # Each chip has a copy of the weights, so that none gathers weights while it decodes.
    config.mesh.data, config.mesh.fsdp, config.mesh.tensor = 4, 1, 1
    # A token's keys and values take 114,688 bytes.
    config.rollout.cache_bytes = 0
    config.rollout.max_images_per_chunk = 8
    config.train.micro_batches = 32  # one image per chip
    config.evaluation.batch_size = 64
    return config
