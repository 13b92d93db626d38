"""Oxford Pets: 3,000 of 3,680 images of 37 breeds of dogs and cats.

python -m speciarl_jax.tools.prepare_data --dataset=oxford_iiit_pet --data_dir=DATA
python -m speciarl_jax.train --config=configs/pets.py --workdir=runs/pets \
    --config.model.path=CHECKPOINT --config.data.options.data_dir=DATA
"""

import ml_collections

from configs import cub


def get_config() -> ml_collections.ConfigDict:
    """Changes the data set of `cub.py`."""
    config = cub.get_config()
    config.data.options.dataset = "oxford_iiit_pet"
    config.evaluation.options.dataset = "oxford_iiit_pet"
    return config
