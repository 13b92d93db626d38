"""A fixed reward for each category, map 3 of the paper.

python -m speciarl_jax.train --config=configs/static_map_3.py --workdir=runs/static_map_3
"""

import ml_collections

import configs


def get_config(parent: str = "base") -> ml_collections.ConfigDict:
    """`parent` with static rewards."""
    config = configs.load(parent)
    config.reward.name = "static_map"
    config.reward.options = ml_collections.ConfigDict(
        {
            "more_specific": 1.0,
            "specific": 1.0,
            "less_specific": 0.75,
            "generic": 0.0,
            "abstain": 0.0,
            "wrong": 0.0,
            "unparsed_reward": -1.0,
        }
    )
    return config
