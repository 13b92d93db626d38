"""GSPO (arXiv 2507.18071): one ratio for a whole rollout, narrow clip.

python -m speciarl_jax.train --config=configs/gspo.py --workdir=runs/gspo
"""

import ml_collections

import configs


def get_config(parent: str = "base") -> ml_collections.ConfigDict:
    """Changes the loss of `parent`."""
    config = configs.load(parent)
    config.advantage.normalize_by_std = True
    config.loss.name = "gspo"
    config.loss.options = ml_collections.ConfigDict(
        {"clip_low": 3e-4, "clip_high": 4e-4, "log_ratio_clamp": 20.0}
    )
    config.loss.token_weights = "sequence_mean"
    config.loss.kl_coefficient = 0.0
    return config
