"""Another prompt: base, specific, calibrated, elimination, high_precision, max_correctness, or
max_specificity (`speciarl_jax/data/prompt_texts`). The prompting baselines need no training:

python -m speciarl_jax.evaluate --config=configs/prompt.py:specific:cub --workdir=runs/specific \
    --config.model.path=CHECKPOINT --config.data.options.data_dir=DATA

and with --best_of=64 the best of 64 samples (temperature .6, top-p .95) is scored too.
"""

import ml_collections

import configs


def get_config(argument: str) -> ml_collections.ConfigDict:
    """The configuration behind the second colon with another prompt; `base` if there is none.

    Args:
      argument: "NAME" or "NAME:PARENT".
    """
    prompt, _, parent = argument.partition(":")
    config = configs.load(parent or "base")
    config.data.prompt = prompt
    return config
