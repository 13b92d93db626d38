"""Another prompt (`speciarl_jax/data/prompt_texts`).

Prompts: base, specific, calibrated, elimination, high_precision, max_correctness, max_specificity.
The prompting baselines need no training:

python -m speciarl_jax.evaluate --config=configs/prompt.py:specific:cub --workdir=runs/specific \
    --config.model.path=CHECKPOINT --config.data.options.data_dir=DATA

--best_of=64 also scores the best of 64 samples (temperature 0.6, top-p 0.95).
"""

import ml_collections

import configs


def get_config(argument: str) -> ml_collections.ConfigDict:
    """Changes the prompt of a configuration.

    Args:
      argument: "NAME" or "NAME:PARENT"; the parent is "base" by default.
    """
    prompt, _, parent = argument.partition(":")
    config = configs.load(parent or "base")
    config.data.prompt = prompt
    return config
