"""A Brier term: what a completion claims by its probability is taken from its reward.

python -m speciarl_jax.train --config=configs/brier.py:0.5:quickstart --workdir=runs/brier
"""

import ml_collections

import configs


def get_config(argument: str) -> ml_collections.ConfigDict:
    """Adds the term (`speciarl_jax/rl/rewards/brier.py`) to a configuration.

    Args:
      argument: "WEIGHT" or "WEIGHT:PARENT"; the parent is "base" by default.

    Raises:
      ValueError: the weight is not a number.
    """
    weight, _, parent = argument.partition(":")
    config = configs.load(parent or "base")
    config.reward.brier_weight = float(weight)
    return config
