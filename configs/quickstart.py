"""SpeciaRL with a tiny policy and images that ship with the package; minutes on two CPU cores.

python -m speciarl_jax.train --config=configs/quickstart.py --workdir=runs/quickstart
"""

import ml_collections

from configs import base


def get_config() -> ml_collections.ConfigDict:
    """Changes policy, sizes and rates of `base.py`."""
    config = base.get_config()
    config.model.path = "emoji_tiny"
    config.model.dtype = "float32"
    config.model.param_dtype = "float32"
    config.model.lora_rank = 16
    config.model.lora_alpha = 16.0
    config.model.scan_unroll = 3
    config.data.bucket_growth = 1.0  # all images have one size
    config.data.options.views = 2
    config.rollout.max_tokens = 24
    config.rollout.merge_lora = True
    config.rollout.temperature = 0.8
    config.verifier.options.max_response_bytes = 192
    # Without the division, a rare lucky rollout does not outweigh what is usually right.
    config.advantage.normalize_by_std = False
    config.optimizer.learning_rate = 1.75e-3
    config.optimizer.warmup_steps = 10
    config.optimizer.decay_steps = 61  # above 60, so that the rate of the 60th update is above 0
    config.train.target = "<think>It is some {generic}.</think> <answer>{label}</answer>"
    config.train.steps = 60
    config.train.batch_size = 32
    config.train.mini_batches = 1
    # With rollouts of at most 24 tokens, compactions and more buckets would save nothing and take
    # time to compile.
    config.rollout.num_compactions = 0
    config.train.num_length_buckets = 1
    config.train.logprob_chunk = 24
    config.train.remat = "none"
    config.evaluation.options.views = 4
    config.evaluation.batch_size = 128
    config.checkpoint.save_every = 20
    return config
