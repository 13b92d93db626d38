"""Photographs of other things, without labels, about which the policy shall go on as it did.

Of each batch three fifths are animals, the design "narrow" of `cifar100.py`, and are rewarded. The
others are of six other superclasses: their labels are not read, and only a KL to the base policy
learns from them. The superclasses of `UNSEEN` are in neither.

python -m speciarl_jax.train --config=configs/unlabelled.py:0.7 --workdir=runs/unlabelled \\
    --config.data.options.data_dir=DATA
"""

import ml_collections

import configs
from speciarl_jax.data.cifar100 import DESIGNS, SUPERCLASSES

# Out of the domains of "narrow" and "wide".
UNSEEN = tuple(name for name in SUPERCLASSES if name not in DESIGNS["wide"])


def get_config(argument: str = "0.0") -> ml_collections.ConfigDict:
    """Adds images without labels to the design "narrow".

    Args:
      argument: "STRENGTH" of credit by information (`information.py`), "0.0" for the paper's
        reward; or "labelled:STRENGTH", to compare with: the same images, all of them with labels.

    Raises:
      ValueError: the strength is not a number.
    """
    first, _, rest = argument.partition(":")
    labelled = first == "labelled"
    config = configs.load(f"information:{rest if labelled else first}:cifar100:narrow")
    options = config.data.options
    options.unlabelled = tuple(n for n in DESIGNS["wide"] if n not in DESIGNS["narrow"])
    # 75 classes in place of 45, with the same images of those 45 but for a few.
    options.subset = options.subset * 5 // 3
    config.evaluation.options.unlabelled = ()
    config.train.batch_size = 48
    if labelled:
        options.unlabelled, options.design = (), "wide"
        config.evaluation.options.design = "narrow"
        return config
    config.loss.kl_unlabelled = 1.0
    return config
