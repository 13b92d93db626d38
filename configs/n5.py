"""Groups of five rollouts.

python -m speciarl_jax.train --config=configs/n5.py --workdir=runs/n5
"""

import ml_collections

import configs


def get_config(parent: str = "base") -> ml_collections.ConfigDict:
    """Changes the group size of `parent`."""
    config = configs.load(parent)
    config.rollout.num_rollouts = 5
    return config
