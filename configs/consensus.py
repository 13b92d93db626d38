"""Photographs of other things, without labels, judged by what the policy's own answers agree on.

The images are those of `unlabelled.py`. The most specific name that enough of the rollouts about an
image support takes the place of its label.

python -m speciarl_jax.train --config=configs/consensus.py:0.3:0.7 --workdir=runs/consensus \\
    --config.data.options.data_dir=DATA
"""

import ml_collections

from configs import unlabelled


def get_config(argument: str = "0.3") -> ml_collections.ConfigDict:
    """Changes `unlabelled.py`.

    Args:
      argument: "CONFIDENCE" or "CONFIDENCE:STRENGTH"; the share of the rollouts about an image that
        must support a name, and the strength of credit by information (0 by default).

    Raises:
      ValueError: one of them is not a number.
    """
    confidence, _, strength = argument.partition(":")
    config = unlabelled.get_config(strength or "0.0")
    config.reward.consensus_confidence = float(confidence)
    config.loss.kl_unlabelled = 0.0
    return config
