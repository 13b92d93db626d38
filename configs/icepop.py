"""IcePop (arXiv 2510.18855): tokens that sampler and trainer disagree about leave the policy loss.

The other tokens are weighted by the ratio of the two, and the policy's ratio is taken against the
trainer's recomputed log-probabilities.

python -m speciarl_jax.train --config=configs/icepop.py --workdir=runs/icepop
"""

import ml_collections

import configs


def get_config(parent: str = "base") -> ml_collections.ConfigDict:
    """Changes how the loss of `parent` treats the mismatch of sampler and trainer."""
    config = configs.load(parent)
    config.loss.old_logprobs = "recomputed"
    config.loss.mismatch_mask = "token"
    config.loss.mismatch_low = 0.5
    config.loss.mismatch_high = 5.0
    # Not below the mask's bound: no weight that is left is cut.
    config.loss.tis_cap = 5.0
    return config
