"""Credit by information: what holds for every training image earns nothing.

python -m speciarl_jax.train --config=configs/information.py:1.0:quickstart \\
    --workdir=runs/information
python -m speciarl_jax.train --config=configs/information.py:bits:1.0:quickstart \\
    --workdir=runs/information_bits
"""

import ml_collections

import configs
from speciarl_jax.rl.rewards import information


def get_config(argument: str = "1.0") -> ml_collections.ConfigDict:
    """Weighs the reward of a configuration.

    Args:
      argument: "STRENGTH", "STRENGTH:PARENT" or "KIND:STRENGTH:PARENT"; the parent is "base" by
        default.

    Raises:
      ValueError: the strength is not a number.
    """
    first, _, rest = argument.partition(":")
    kind = first if first in information.KINDS else "share"
    strength, _, parent = (rest if kind == first else argument).partition(":")
    config = configs.load(parent or "base")
    config.reward.information.kind = kind
    config.reward.information.strength = float(strength)
    return config
