"""The paper's training set with Qwen3-VL-4B on 4 chips of TPU v5e, 16 GB each.

python -m speciarl_jax.tools.plan --config=configs/cub_qwen3_vl_4b.py --topology=v5e:2x2 \
    --model=qwen3_vl_4b

Compiled: rollout 11.8 GiB a chip of 15.75, update 13.3 GiB.
"""

import ml_collections

from configs import cub


def get_config() -> ml_collections.ConfigDict:
    """Changes mesh, chunks and micro-batches of `cub.py`."""
    config = cub.get_config()
    # Two chips share a copy of the weights, so that no chip gathers weights while it decodes.
    config.mesh.data, config.mesh.fsdp, config.mesh.tensor = 2, 1, 2
    # A token's keys and values take 147,456 bytes.
    config.rollout.cache_bytes = 0
    config.rollout.max_images_per_chunk = 4
    config.train.micro_batches = 64  # one image per copy
    config.evaluation.batch_size = 32
    return config
