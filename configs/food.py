"""Food101: 3,000 images; its test split has 25,250 (CoOp's 30,300).

python -m speciarl_jax.tools.prepare_data --dataset=food101 --data_dir=DATA
python -m speciarl_jax.train --config=configs/food.py --workdir=runs/food \
    --config.model.path=CHECKPOINT --config.data.options.data_dir=DATA
"""

import ml_collections

from configs import cub


def get_config() -> ml_collections.ConfigDict:
    """Changes the data set of `cub.py`."""
    config = cub.get_config()
    config.data.options.dataset = "food101"
    config.evaluation.options.dataset = "food101"
    return config
