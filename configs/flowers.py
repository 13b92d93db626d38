"""Flowers102: the 1,020 images of TFDS' train split; its test split has 6,149 (CoOp's 2,463).

python -m speciarl_jax.tools.prepare_data --dataset=oxford_flowers102 --data_dir=DATA
python -m speciarl_jax.train --config=configs/flowers.py --workdir=runs/flowers \
    --config.model.path=CHECKPOINT --config.data.options.data_dir=DATA
"""

import ml_collections

from configs import cub


def get_config() -> ml_collections.ConfigDict:
    """Changes the data set of `cub.py`."""
    config = cub.get_config()
    config.data.options.dataset = "oxford_flowers102"
    config.data.options.subset = 0
    config.evaluation.options.dataset = "oxford_flowers102"
    return config
