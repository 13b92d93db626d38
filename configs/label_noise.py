"""Wrong verdicts: each moves one category up or down with the given probability.

python -m speciarl_jax.train --config=configs/label_noise.py:0.05 --workdir=runs/label_noise_05
python -m speciarl_jax.train --config=configs/label_noise.py:0.10 --workdir=runs/label_noise_10
python -m speciarl_jax.train --config=configs/label_noise.py:0.25:quickstart \
    --workdir=runs/quickstart_label_noise_25
"""

import ml_collections

import configs


def get_config(argument: str) -> ml_collections.ConfigDict:
    """Adds label noise to a configuration.

    Args:
      argument: "RATE" or "RATE:PARENT"; the parent is "base" by default.

    Raises:
      ValueError: the rate is not a number.
    """
    rate, _, parent = argument.partition(":")
    config = configs.load(parent or "base")
    config.label_noise.rate = float(rate)
    return config
