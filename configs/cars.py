"""Stanford Cars alone: 3,000 images; make, model, body and year of 196 cars.

python -m speciarl_jax.tools.prepare_data --dataset=cars196 --data_dir=DATA
python -m speciarl_jax.train --config=configs/cars.py --workdir=runs/cars \
    --config.model.path=CHECKPOINT --config.data.options.data_dir=DATA
"""

import ml_collections

from configs import cub


def get_config() -> ml_collections.ConfigDict:
    """`cub.py` with another data set."""
    config = cub.get_config()
    config.data.options.dataset = "cars196"
    config.evaluation.options.dataset = "cars196"
    return config
