"""Data scaling: 128 images of CUB-200-2011, a part of every larger subset.

They are half a batch of the other runs, so a step has 128 images and one optimizer update.

python -m speciarl_jax.train --config=configs/cub_128.py --workdir=runs/cub_128 \
    --config.model.path=CHECKPOINT --config.data.options.data_dir=DATA
"""

import ml_collections

from configs import cub


def get_config() -> ml_collections.ConfigDict:
    """Changes the number of images of `cub.py`."""
    config = cub.get_config()
    config.data.options.subset = 128
    config.train.batch_size = 128
    config.train.mini_batches = 1
    return config
