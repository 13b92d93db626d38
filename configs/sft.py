"""Supervised fine-tuning on the true labels of the same images.

python -m speciarl_jax.train --config=configs/sft.py --workdir=runs/sft
"""

import ml_collections

import configs


def get_config(parent: str = "base") -> ml_collections.ConfigDict:
    """Changes the objective of `parent`."""
    config = configs.load(parent)
    config.train.objective = "sft"
    config.loss.kl_coefficient = 0.0
    return config
