"""DAPO (arXiv 2503.14476): dynamic sampling until every group has rewards that differ.

python -m speciarl_jax.train --config=configs/dapo.py --workdir=runs/dapo
"""

import ml_collections

import configs


def get_config(parent: str = "base") -> ml_collections.ConfigDict:
    """Adds dynamic sampling to `dapo_no_dynamic.py`."""
    config = configs.load(f"dapo_no_dynamic:{parent}")
    config.train.dynamic_sampling.max_rounds = 10
    config.train.dynamic_sampling.batch_size = 3 * config.train.batch_size  # 768 images
    return config
