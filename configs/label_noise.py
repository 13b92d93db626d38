"""The quickstart with a verifier that errs: each verdict moves one rank with the probability given.

python -m speciarl_jax.train --config=configs/label_noise.py:0.05 --workdir=runs/label_noise_05
python -m speciarl_jax.train --config=configs/label_noise.py:0.10 --workdir=runs/label_noise_10
python -m speciarl_jax.train --config=configs/label_noise.py:0.25 --workdir=runs/label_noise_25
"""

import ml_collections

from configs import quickstart


def get_config(rate: str = "0.10") -> ml_collections.ConfigDict:
    """`quickstart.py` with label noise; `rate` is what stands behind the colon."""
    config = quickstart.get_config()
    config.label_noise.rate = float(rate)
    return config
