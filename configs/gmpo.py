"""GMPO (arXiv 2507.20673): geometric mean of a rollout's ratios, each clipped widely; no KL.

python -m speciarl_jax.train --config=configs/gmpo.py --workdir=runs/gmpo
"""

import ml_collections

import configs


def get_config(parent: str = "base") -> ml_collections.ConfigDict:
    """Changes the loss of `parent`."""
    config = configs.load(parent)
    config.advantage.normalize_by_std = True
    config.loss.name = "gmpo"
    config.loss.options = ml_collections.ConfigDict(
        {"clip_low": 0.4, "clip_high": 0.4, "log_ratio_clamp": 20.0}
    )
    config.loss.token_weights = "sequence_mean"
    config.loss.kl_coefficient = 0.0
    return config
