"""The paper's training set with Qwen3-VL-8B on 8 chips of TPU v6e, 32 GB each.

python -m speciarl_jax.tools.plan --config=configs/cub_qwen3_vl_8b_v6e8.py --topology=v6e:2x4 \
    --model=qwen3_vl_8b

Memory of a chip, computed and not compiled:
weights 4.4 GB, adapters with gradient and two moments at
most 2.8 GB, and the caches of 8 images 6.2 GB, or 9.3 GB during a compaction of the decode slots.
"""

import ml_collections

from configs import cub_qwen3_vl_8b


def get_config() -> ml_collections.ConfigDict:
    """Changes the mesh of `cub_qwen3_vl_8b.py`."""
    config = cub_qwen3_vl_8b.get_config()
    config.mesh.data, config.mesh.fsdp, config.mesh.tensor = 2, 1, 4
    return config
