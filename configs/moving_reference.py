"""A reference policy that follows the policy, for the KL.

python -m speciarl_jax.train --config=configs/moving_reference.py:0.9 --workdir=runs/moving
"""

import ml_collections

import configs


def get_config(argument: str) -> ml_collections.ConfigDict:
    """Lets the reference policy of a configuration keep a share of itself in each step.

    Args:
      argument: "DECAY" or "DECAY:PARENT"; the parent is "base" by default.

    Raises:
      ValueError: the share is not a number.
    """
    decay, _, parent = argument.partition(":")
    config = configs.load(parent or "base")
    config.loss.reference_decay = float(decay)
    return config
