"""Pretraining of a tiny policy for your own folder of photographs; minutes on two CPU cores.

The encoder is that of `cifar100_tiny`, which has seen photographs of 100 kinds of things. Half of
the images of each label teach a new decoder; the other half is left for reinforcement
(configs/own_folder.py:quickstart with `part` "held_out").

python -m examples.pretrain --config=configs/own_folder_sft.py --workdir=runs/own_sft \
    --config.data.options.path=FOLDER
"""

import ml_collections
from ml_collections import config_dict

from configs import cifar100_sft


def get_config() -> ml_collections.ConfigDict:
    """Changes data and stages of `cifar100_sft.py`."""
    config = cifar100_sft.get_config()
    data = config.data
    data.image_size = 64  # pixels; 8 x 8 patches -> 16 tokens
    data.crop = True
    data.name = "folder"
    data.options = ml_collections.ConfigDict()
    data.options.path = config_dict.placeholder(str)
    data.options.group = ""
    data.options.split = ""
    data.options.part = "training"
    data.options.held_out_share = 0.5
    data.augmentation = ml_collections.ConfigDict(
        {"shift": 8, "flip": 0.5, "colour": 0.3, "cutout": 16}
    )
    config.vision_stage.policy = "cifar100_tiny"
    config.vision_stage.options = ml_collections.ConfigDict()
    config.vision_stage.watch = ml_collections.ConfigDict()
    stage = config.answer_stage
    stage.epochs = 16
    stage.answers = 2
    stage.options = ml_collections.ConfigDict()
    stage.watch = ml_collections.ConfigDict({"held_out": {"part": "held_out", "subset": 128}})
    stage.prompts = ml_collections.ConfigDict({"base": 1.0})
    return config
