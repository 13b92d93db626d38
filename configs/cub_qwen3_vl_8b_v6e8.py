"""The paper's training set with Qwen3-VL-8B on 8 chips of TPU v6e, 32 GB each.

python -m speciarl_jax.tools.plan --config=configs/cub_qwen3_vl_8b_v6e8.py --topology=v6e:2x4 \
    --model=qwen3_vl_8b

Compiled: rollout 19.4 GiB a chip of 31.2, update 23.7 GiB.
"""

import ml_collections

from configs import cub_qwen3_vl_8b


def get_config() -> ml_collections.ConfigDict:
    """Changes the mesh of `cub_qwen3_vl_8b.py`."""
    config = cub_qwen3_vl_8b.get_config()
    config.mesh.data, config.mesh.fsdp, config.mesh.tensor = 2, 1, 4
    return config
