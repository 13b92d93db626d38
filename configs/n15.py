"""Fifteen answers about each image.

python -m speciarl_jax.train --config=configs/n15.py --workdir=runs/n15
"""

import ml_collections

import configs


def get_config(parent: str = "base") -> ml_collections.ConfigDict:
    """`parent` with fifteen answers."""
    config = configs.load(parent)
    config.rollout.num_rollouts = 15
    return config
