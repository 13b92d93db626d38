"""Dr.GRPO with the binary reward.

python -m speciarl_jax.train --config=configs/dr_grpo_binary.py --workdir=runs/dr_grpo_binary
"""

import ml_collections

import configs


def get_config(parent: str = "base") -> ml_collections.ConfigDict:
    """Changes advantage, loss and reward of `parent`."""
    return configs.load(f"binary:dr_grpo:{parent}")
