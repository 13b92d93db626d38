"""RFT: the reward is whether the answer is specific or more specific, whatever the group says.

python -m speciarl_jax.train --config=configs/binary.py --workdir=runs/binary
"""

import ml_collections

import configs


def get_config(parent: str = "base") -> ml_collections.ConfigDict:
    """`parent` with the binary reward."""
    config = configs.load(parent)
    config.reward.name = "binary"
    config.reward.options = ml_collections.ConfigDict({"unparsed_reward": -1.0})
    return config
