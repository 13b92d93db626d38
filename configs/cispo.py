"""CISPO (arXiv 2506.13585): the importance weight is clipped, no token loses its gradient; no KL.

python -m speciarl_jax.train --config=configs/cispo.py --workdir=runs/cispo
"""

import ml_collections

import configs


def get_config(parent: str = "base") -> ml_collections.ConfigDict:
    """Changes the loss of `parent`."""
    config = configs.load(parent)
    config.advantage.normalize_by_std = True
    config.loss.name = "cispo"
    # Weights of 0 to 5. The paper has no lower bound, either, and does not print its upper one.
    config.loss.options = ml_collections.ConfigDict(
        {"clip_low": 1.0, "clip_high": 4.0, "log_ratio_clamp": 20.0}
    )
    config.loss.token_weights = "token_mean"
    config.loss.kl_coefficient = 0.0
    return config
