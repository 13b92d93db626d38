"""Dr.GRPO (arXiv 2503.20783): no division by standard deviation or length, no KL.

python -m speciarl_jax.train --config=configs/dr_grpo.py --workdir=runs/dr_grpo
"""

import ml_collections

import configs


def get_config(parent: str = "base") -> ml_collections.ConfigDict:
    """Changes advantage and loss of `parent`."""
    config = configs.load(parent)
    config.advantage.normalize_by_std = False
    config.loss.token_weights = "constant"
    # A reference, so that it follows `--config.rollout.max_tokens` on the command line.
    length = config.rollout.get_ref("max_tokens")
    config.loss.token_weights_options = ml_collections.ConfigDict({"length": length})
    config.loss.kl_coefficient = 0.0
    return config
