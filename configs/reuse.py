"""Answers are learned from twice.

The trainer's own log-probabilities hold the ratio to the policy of the step's start, and a
truncated importance weight corrects for the sampler.

python -m speciarl_jax.train --config=configs/reuse.py --workdir=runs/reuse
"""

import ml_collections

import configs


def get_config(parent: str = "base") -> ml_collections.ConfigDict:
    """`parent` with two PPO epochs a step."""
    config = configs.load(parent)
    config.train.ppo_epochs = 2
    config.optimizer.decay_steps *= 2  # which counts updates
    config.loss.old_logprobs = "recomputed"
    config.loss.tis_cap = 2.0
    return config
