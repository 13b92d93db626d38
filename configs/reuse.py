"""Answers are learned from twice.

The trainer's own log-probabilities hold the ratio to the policy of the step's start, and a
truncated importance weight corrects for the sampler.

python -m speciarl_jax.train --config=configs/reuse.py --workdir=runs/reuse
"""

import ml_collections

import configs


def get_config(parent: str = "base") -> ml_collections.ConfigDict:
    """`parent` with two passes a step."""
    config = configs.load(parent)
    config.train.passes = 2
    config.optimizer.decay_steps *= 2  # which counts updates
    config.loss.old_logp = "trainer"
    config.loss.importance_cap = 2.0
    return config
