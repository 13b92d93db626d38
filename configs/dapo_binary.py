"""DAPO with the binary reward.

python -m speciarl_jax.train --config=configs/dapo_binary.py --workdir=runs/dapo_binary
"""

import ml_collections

import configs


def get_config(parent: str = "base") -> ml_collections.ConfigDict:
    """Changes loss, sampling and reward of `parent`."""
    return configs.load(f"binary:dapo:{parent}")
