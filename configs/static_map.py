"""A fixed reward for each category: map 1, 2 or 3 of the paper.

python -m speciarl_jax.train --config=configs/static_map.py:1 --workdir=runs/static_map_1
python -m speciarl_jax.train --config=configs/static_map.py:2:dapo --workdir=runs/dapo_static_map_2
"""

import ml_collections

import configs

# Rewards of less specific, generic and abstain; specific and more specific earn 1, wrong 0.
MAPS = {"1": (0.75, 0.5, 0.25), "2": (0.75, 0.5, 0.0), "3": (0.75, 0.0, 0.0)}


def get_config(argument: str) -> ml_collections.ConfigDict:
    """Changes the reward of a configuration.

    Args:
      argument: "NUMBER" or "NUMBER:PARENT"; the parent is "base" by default.

    Raises:
      ValueError: there is no such map.
    """
    number, _, parent = argument.partition(":")
    if number not in MAPS:
        raise ValueError(f"there is no static map {number!r}; choose one of {sorted(MAPS)}")
    config = configs.load(parent or "base")
    less_specific, generic, abstain = MAPS[number]
    config.reward.name = "static_map"
    config.reward.options = ml_collections.ConfigDict(
        {
            "more_specific": 1.0,
            "specific": 1.0,
            "less_specific": less_specific,
            "generic": generic,
            "abstain": abstain,
            "wrong": 0.0,
            "unparsed_reward": -1.0,
        }
    )
    return config
