"""Qwen2.5-VL-3B on the paper's training set, for a small pod: 16 devices of 32 GB (TPU v6e-16).

python -m speciarl_jax.train --config=configs/cub_3b.py --workdir=runs/cub_3b \
    --config.model.path=CHECKPOINT --config.data.options.data_dir=DATA
python -m speciarl_jax.train --config=configs/dapo.py:cub_3b --workdir=runs/dapo_3b ...

Batch, N, T and all rates are the paper's. Memory of a device, computed and not measured:
- weights: 3.75e9 parameters of 2 bytes over 16 devices, 0.5 GB; adapters (119.7e6) with gradient
  and two moments in float32, 0.1 GB.
- sampling: keys and values take 36,864 bytes per token (2 x 36 layers x 2 heads x 128 x 2 bytes).
  An image with a prompt of 648 tokens and ten rollouts of 2,048 takes 0.78 GB, and 1.16 GB during a
  compaction of the decode slots. A device has 16 images: in two chunks of 8 they take 9.3 GB.
- update: a micro-batch is one image on each device, a row of 21,128 tokens: 3.1 GB of layer inputs.
  One layer computed again takes 1.4 GB of hidden units and 3.5 GB of attention scores in float32,
  each a few times in the backward pass.
"""

import ml_collections

from configs import cub


def get_config() -> ml_collections.ConfigDict:
    """Changes `cub.py` to take less memory."""
    config = cub.get_config()
    config.rollout.cache_bytes = 10 * 2**30
    config.train.micro_batches = 8
    return config
