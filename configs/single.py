"""Only the first of the best answers of a group is rewarded.

python -m speciarl_jax.train --config=configs/single.py --workdir=runs/single
"""

import ml_collections

import configs


def get_config(parent: str = "base") -> ml_collections.ConfigDict:
    """`parent` with one reward a group."""
    config = configs.load(parent)
    config.reward.options.mode = "single"
    return config
