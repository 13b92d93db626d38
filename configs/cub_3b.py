"""Qwen2.5-VL-3B on the paper's training set, for a small pod: 32 devices of 16 GiB (TPU v5e-32).

python -m speciarl_jax.train --config=configs/cub_3b.py --workdir=runs/cub_3b \
    --config.model.path=CHECKPOINT --config.data.options.data_dir=DATA
"""

import ml_collections

from configs import cub


def get_config() -> ml_collections.ConfigDict:
    """`cub.py` with what keeps a step small; batch, N, T and all rates are the paper's."""
    config = cub.get_config()
    config.train.micro_batches = 4
    config.evaluation.best_of_batch_size = 32  # a picture a device
    return config
