"""REINFORCE++ with baseline (arXiv 2501.03262): standard deviation of the whole batch, KL by k2.

python -m speciarl_jax.train --config=configs/reinforce_pp.py --workdir=runs/reinforce_pp
"""

import ml_collections

import configs


def get_config(parent: str = "base") -> ml_collections.ConfigDict:
    """Changes advantage and KL of `parent`."""
    config = configs.load(parent)
    config.advantage.baseline = "mean"
    config.advantage.normalize_by_std = True
    config.advantage.std_over = "batch"
    config.loss.kl_estimator = "k2"
    config.loss.kl_in = "loss"
    return config
