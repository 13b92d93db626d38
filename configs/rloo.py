"""RLOO (arXiv 2402.14740): mean of the other rollouts as baseline, KL in the reward.

python -m speciarl_jax.train --config=configs/rloo.py --workdir=runs/rloo
"""

import ml_collections

import configs


def get_config(parent: str = "base") -> ml_collections.ConfigDict:
    """Changes baseline and KL of `parent`."""
    config = configs.load(parent)
    config.advantage.baseline = "leave_one_out"
    config.advantage.normalize_by_std = False
    config.loss.kl_estimator = "k1"
    config.loss.kl_in = "reward"
    return config
