"""Rank-aware credit: of two completions of a group the better one shall be the more probable.

python -m speciarl_jax.train --config=configs/rank_aware.py:0.5:quickstart --workdir=runs/rank_aware
"""

import ml_collections

import configs


def get_config(argument: str) -> ml_collections.ConfigDict:
    """Adds the loss of pairs (`speciarl_jax/rl/losses/rank.py`) to a configuration.

    Args:
      argument: "COEFFICIENT" or "COEFFICIENT:PARENT"; the parent is "base" by default.

    Raises:
      ValueError: the coefficient is not a number.
    """
    coefficient, _, parent = argument.partition(":")
    config = configs.load(parent or "base")
    config.loss.rank_coefficient = float(coefficient)
    return config
