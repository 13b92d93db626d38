"""The paper's training set with Qwen3-VL-4B on 4 chips of TPU v5e, 16 GB each.

python -m speciarl_jax.tools.plan --config=configs/cub_qwen3_vl_4b.py --topology=v5e:2x2 \
    --model=qwen3_vl_4b

Memory of a chip, computed and not compiled:
weights 4.4 GB, adapters with gradient and two moments at
most 2.1 GB, and the caches of 2 images 3.1 GB, or 4.6 GB during a compaction of the decode slots.
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
