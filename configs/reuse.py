"""Two PPO epochs: each step trains on its rollouts twice.

The ratio is taken against log-probabilities that the trainer recomputes at the start of the step. A
truncated importance weight corrects for the difference from the sampler.

python -m speciarl_jax.train --config=configs/reuse.py --workdir=runs/reuse
"""

import ml_collections

import configs


def get_config(parent: str = "base") -> ml_collections.ConfigDict:
    """Changes the update of `parent`."""
    config = configs.load(parent)
    config.train.ppo_epochs = 2
    config.optimizer.decay_steps *= 2  # counts updates
    config.loss.old_logprobs = "recomputed"
    config.loss.tis_cap = 2.0
    return config
