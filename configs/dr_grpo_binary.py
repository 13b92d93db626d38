"""`dr_grpo.py` with the binary reward.

python -m speciarl_jax.train --config=configs/dr_grpo_binary.py --workdir=runs/dr_grpo_binary
"""

import ml_collections

import configs


def get_config(parent: str = "base") -> ml_collections.ConfigDict:
    """`parent` with both."""
    return configs.load(f"binary:dr_grpo:{parent}")
