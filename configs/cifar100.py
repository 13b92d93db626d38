"""SpeciaRL on photographs: CIFAR-100 and a tiny policy that ships, minutes on two CPU cores.

python -m speciarl_jax.tools.prepare_data --dataset=cifar100 --data_dir=DATA
python -m speciarl_jax.train --config=configs/cifar100.py:narrow --workdir=runs/cifar100 \\
    --config.data.options.data_dir=DATA
"""

import ml_collections

from configs import quickstart
from speciarl_jax.data import cifar100


def get_config(design: str = "broad") -> ml_collections.ConfigDict:
    """Changes policy, data and steps of `quickstart.py`.

    Args:
      design: "broad", reinforcement on 15 of 20 superclasses; "narrow", on those of animals; or
        "wide", on those and six others.
    """
    config = quickstart.get_config()
    config.model.path = "cifar100_tiny"
    config.data.name = "cifar100"
    config.data.options = ml_collections.ConfigDict()
    config.data.options.split = "reinforcement"
    config.data.options.design = design
    config.data.options.side = "in_domain"
    config.data.options.subset = 3000  # images, as in the paper
    config.data.options.data_dir = ""  # of data sets prepared by speciarl_jax.tools.prepare_data
    config.data.options.path = ""  # folder of Parquet files instead
    config.train.steps = 60
    config.optimizer.decay_steps = 61
    config.evaluation.options = ml_collections.ConfigDict()
    config.evaluation.options.split = "test"
    config.evaluation.options.side = "in_domain"
    config.evaluation.options.subset = 2500  # images
    # What `python -m speciarl_jax.evaluate` asks about: both sides.
    config.evaluation.sets = ml_collections.ConfigDict(
        {side: {"name": "cifar100", "options": _options(config, side)} for side in cifar100.SIDES}
    )
    config.evaluation.batch_size = 250
    return config


def _options(config: ml_collections.ConfigDict, side: str) -> ml_collections.ConfigDict:
    """Returns the evaluation images of a side; what the command line changes holds for it too."""
    options, own = config.data.options, config.evaluation.options
    found = ml_collections.ConfigDict({"split": "test", "side": side})
    for key in ("design", "data_dir", "path"):
        found[key] = options.get_ref(key)
    found.subset = own.get_ref("subset")
    return found
