"""The paper's training set with Qwen3-VL-2B on one chip of 16 GB.

python -m speciarl_jax.tools.plan --config=configs/cub_qwen3_vl_2b_one_chip.py --topology=v5e:1x1 \
    --model=qwen3_vl_2b

Compiled for one v5e: rollout 15.6 GiB of 15.75, update 11.7 GiB.
"""

import ml_collections

from configs import cub_qwen3_vl_2b


def get_config() -> ml_collections.ConfigDict:
    """Changes mesh, chunks and micro-batches of `cub_qwen3_vl_2b.py`."""
    config = cub_qwen3_vl_2b.get_config()
    config.mesh.data, config.mesh.fsdp, config.mesh.tensor = 1, 1, 1
    config.rollout.max_images_per_chunk = 2
    config.train.micro_batches = 128  # one image
    config.evaluation.batch_size = 16
    return config
