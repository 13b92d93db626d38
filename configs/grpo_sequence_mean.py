"""GRPO as first published (arXiv 2402.03300): all rollouts weigh the same, short or long.

python -m speciarl_jax.train --config=configs/grpo_sequence_mean.py --workdir=runs/sequence_mean
"""

import ml_collections

import configs


def get_config(parent: str = "base") -> ml_collections.ConfigDict:
    """Changes the token weights of `parent`."""
    config = configs.load(parent)
    config.advantage.normalize_by_std = True
    config.loss.token_weights = "sequence_mean"
    return config
