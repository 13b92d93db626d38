"""Qwen2.5-VL-3B on the paper's training set, on one GPU.
"""

import ml_collections

from configs import cub


def get_config() -> ml_collections.ConfigDict:
    """`cub.py` in parts."""
    config = cub.get_config()
    config.train.micro_batches = 64
    return config
