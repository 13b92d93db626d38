"""Only the first of the best rollouts of a group is rewarded.

python -m speciarl_jax.train --config=configs/single.py --workdir=runs/single
"""

import ml_collections

import configs


def get_config(parent: str = "base") -> ml_collections.ConfigDict:
    """Changes the reward of `parent`."""
    config = configs.load(parent)
    config.reward.options.mode = "single"
    return config
