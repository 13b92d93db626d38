"""The paper's training set with Qwen3-VL-2B on one chip of 16 GB.

python -m speciarl_jax.tools.plan --config=configs/cub_qwen3_vl_2b_one_chip.py --topology=v5e:1x1 \
    --model=qwen3_vl_2b

Memory of a chip, computed and not compiled:
weights 4.3 GB, adapters with gradient and two moments
1.1 GB, and the caches of 2 images 4.8 GB, or 7.2 GB during a compaction of the decode slots.
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
