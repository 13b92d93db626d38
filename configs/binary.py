"""RFT: the reward is 1 for specific and more specific rollouts, whatever else is in the group.

python -m speciarl_jax.train --config=configs/binary.py --workdir=runs/binary
"""

import ml_collections

import configs


def get_config(parent: str = "base") -> ml_collections.ConfigDict:
    """Changes the reward of `parent`."""
    config = configs.load(parent)
    config.reward.name = "binary"
    config.reward.options = ml_collections.ConfigDict({"unparsed_reward": -1.0})
    return config
