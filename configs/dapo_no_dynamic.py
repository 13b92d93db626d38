"""DAPO (arXiv 2503.14476) without dynamic sampling: higher upper clip, length penalty, no KL.

python -m speciarl_jax.train --config=configs/dapo_no_dynamic.py --workdir=runs/dapo_no_dynamic
"""

import ml_collections

import configs


def get_config(parent: str = "base") -> ml_collections.ConfigDict:
    """Changes loss and length penalty of `parent`."""
    config = configs.load(parent)
    config.advantage.normalize_by_std = True
    config.loss.options.clip_high = 0.28
    config.loss.options.dual_clip = 10.0
    config.loss.token_weights = "token_mean"
    config.loss.kl_coefficient = 0.0
    config.reward.overlong_penalty = 1.0
    config.reward.overlong_buffer = config.rollout.max_tokens // 4  # 512 of 2,048 tokens
    return config
