"""The paper's training set with Qwen3-VL-4B on one chip of 16 GB; the base weights are int8.

python -m speciarl_jax.tools.plan --config=configs/cub_qwen3_vl_4b_one_chip.py --topology=v5e:1x1 \
    --model=qwen3_vl_4b

Compiled for one v5e: rollout 14.7 GiB of 15.75, update 13.4 GiB. With completions of 2,048 tokens
neither fits (16.7 and 26.5 GiB).
"""

import ml_collections

from configs import cub_qwen3_vl_4b


def get_config() -> ml_collections.ConfigDict:
    """Changes mesh, chunks and micro-batches of `cub_qwen3_vl_4b.py`."""
    config = cub_qwen3_vl_4b.get_config()
    config.mesh.data, config.mesh.fsdp, config.mesh.tensor = 1, 1, 1
    config.model.base_weights = "int8"
    config.rollout.max_tokens = 1024
    config.rollout.max_images_per_chunk = 1
    config.train.micro_batches = 128  # one image
    config.evaluation.batch_size = 8
    return config
