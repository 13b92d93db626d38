"""Data scaling: 2048 images of CUB-200-2011, a part of every larger subset.

python -m speciarl_jax.train --config=configs/cub_2048.py --workdir=runs/cub_2048 \
    --config.model.path=CHECKPOINT --config.data.options.data_dir=DATA
"""

import ml_collections

from configs import cub


def get_config() -> ml_collections.ConfigDict:
    """Changes the number of images of `cub.py`."""
    config = cub.get_config()
    config.data.options.subset = 2048
    return config
