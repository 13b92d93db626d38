"""SAPO (arXiv 2511.20347): a smooth gate on each token's ratio in place of a clip; no KL.

python -m speciarl_jax.train --config=configs/sapo.py --workdir=runs/sapo
"""

import ml_collections

import configs


def get_config(parent: str = "base") -> ml_collections.ConfigDict:
    """Changes the loss of `parent`."""
    config = configs.load(parent)
    config.advantage.normalize_by_std = True
    config.loss.name = "sapo"
    config.loss.options = ml_collections.ConfigDict(
        {"temperature_positive": 1.0, "temperature_negative": 1.05, "log_ratio_clamp": 20.0}
    )
    config.loss.token_weights = "sequence_mean"
    config.loss.kl_coefficient = 0.0
    return config
