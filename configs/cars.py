"""Stanford Cars: 3,000 images of 196 cars, with make, model, body and year.

python -m speciarl_jax.tools.prepare_data --dataset=cars196 --data_dir=DATA
python -m speciarl_jax.train --config=configs/cars.py --workdir=runs/cars \
    --config.model.path=CHECKPOINT --config.data.options.data_dir=DATA
"""

import ml_collections

from configs import cub


def get_config() -> ml_collections.ConfigDict:
    """Changes the data set of `cub.py`."""
    config = cub.get_config()
    config.data.options.dataset = "cars196"
    config.evaluation.options.dataset = "cars196"
    return config
