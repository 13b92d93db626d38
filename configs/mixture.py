"""Mixture of six data sets, 500 images of each; evaluation on 300 images of each test split.

Prepare each set once: python -m speciarl_jax.tools.prepare_data --dataset=NAME --data_dir=DATA

python -m speciarl_jax.train --config=configs/mixture.py --workdir=runs/mixture \
    --config.model.path=CHECKPOINT --config.data.options.common.data_dir=DATA
"""

import ml_collections

from configs import cub
from speciarl_jax.data import tfds_images


def parts(split: str, subset: int) -> ml_collections.ConfigDict:
    """Returns all data sets of the paper with equal weights."""
    return ml_collections.ConfigDict(
        {
            dataset: {
                "name": "tfds_images",
                "weight": 1.0,
                "options": {"dataset": dataset, "split": split, "subset": subset},
            }
            for dataset in tfds_images.PAPER
        }
    )


def get_config() -> ml_collections.ConfigDict:
    """Changes the data set of `cub.py`."""
    config = cub.get_config()
    config.data.name = "mixture"
    config.data.options = ml_collections.ConfigDict()
    config.data.options.parts = parts("train", 500)
    # Options of every part.
    config.data.options.common = ml_collections.ConfigDict({"data_dir": "", "check_sizes": True})
    config.data.options.size = 0  # images of an epoch; 0: the most without a repetition
    config.evaluation.options = ml_collections.ConfigDict()
    config.evaluation.options.parts = parts("test", 300)
    return config
