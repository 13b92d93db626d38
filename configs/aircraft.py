"""FGVC Aircraft: 3,000 images of 100 variants, with families and manufacturers.

python -m speciarl_jax.tools.prepare_data --dataset=fgvc_aircraft --data_dir=DATA
python -m speciarl_jax.train --config=configs/aircraft.py --workdir=runs/aircraft \
    --config.model.path=CHECKPOINT --config.data.options.data_dir=DATA
"""

import ml_collections

from configs import cub


def get_config() -> ml_collections.ConfigDict:
    """Changes the data set of `cub.py`."""
    config = cub.get_config()
    config.data.options.dataset = "fgvc_aircraft"
    config.evaluation.options.dataset = "fgvc_aircraft"
    return config
