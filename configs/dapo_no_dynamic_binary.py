"""`dapo_no_dynamic.py` with the binary reward.

python -m speciarl_jax.train --config=configs/dapo_no_dynamic_binary.py --workdir=runs/dapo_binary
"""

import ml_collections

import configs


def get_config(parent: str = "base") -> ml_collections.ConfigDict:
    """`parent` with both."""
    return configs.load(f"binary:dapo_no_dynamic:{parent}")
