"""Pretraining of the tiny policy of the laboratory of photographs, from scratch.

python -m examples.pretrain --config=configs/cifar100_sft.py --workdir=runs/cifar100_sft \\
    --config.data.options.path=FOLDER_OF_PARQUET_FILES
"""

import ml_collections

from configs import quickstart_sft


def get_config() -> ml_collections.ConfigDict:
    """Changes data, sizes and habits of `quickstart_sft.py`."""
    config = quickstart_sft.get_config()
    _data(config.data)
    # 32 pixels -> 4 x 4 patches -> 4 tokens. Smaller patches see more and cost four times as much.
    config.vision.patch_size = 8
    config.vision.window_size = 32
    config.vision.hidden_size = 160
    config.vision.intermediate_size = 384
    config.vision.num_heads = 5
    # 34,000 images train the encoder and 5,000 others the decoder. On images that the encoder had
    # learned by heart, the decoder would learn that it is always right.
    held_out = {"split": "validation"}
    stage = config.vision_stage
    stage.options = ml_collections.ConfigDict({"part": "training"})
    stage.watch = ml_collections.ConfigDict({"validation": {**held_out, "part": "all"}})
    stage.cycles = (22,)
    stage.warmup_steps = 200
    stage.log_every = 266
    stage = config.answer_stage
    stage.options = ml_collections.ConfigDict({"part": "held_out"})
    stage.watch = ml_collections.ConfigDict({"validation": {**held_out, "part": "all"}})
    stage.epochs = 10
    stage.prompts = ml_collections.ConfigDict(
        {"base": 6.0, "specific": 1.0, "calibrated": 1.0, "elimination": 1.0}
        | {"high_precision": 1.0, "max_correctness": 1.0, "max_specificity": 1.0}
    )
    _habits(config.habits)
    return config


def _data(data: ml_collections.ConfigDict) -> None:
    """Photographs of all 100 classes (data/cifar100.py)."""
    data.image_size = 32
    data.name = "cifar100"
    data.options = ml_collections.ConfigDict()
    data.options.split = "pretraining"
    data.options.held_out_share = 0.13  # of the images, for the decoder
    data.options.data_dir = ""  # of data sets prepared by speciarl_jax.tools.prepare_data
    data.options.path = ""  # folder of Parquet files instead
    data.augmentation = ml_collections.ConfigDict(
        {"shift": 4, "flip": 0.5, "colour": 0.3, "cutout": 8}
    )


def _habits(habits: ml_collections.ConfigDict) -> None:
    """Half of the labels are named broadly; a prompt changes that half of the time."""
    habits.level_shares = (0.06, 0.56, 0.2, 0.18)
    habits.abstain = ml_collections.ConfigDict({"": 0.02})
    habits.obedience = 0.5
    # Abstain, generic, less specific, specific.
    habits.leanings = ml_collections.ConfigDict(
        {
            "specific": (0.0, 0.1, 0.2, 0.7),
            "calibrated": (0.1, 0.3, 0.3, 0.3),
            "elimination": (0.1, 0.2, 0.3, 0.4),
            "high_precision": (0.3, 0.4, 0.2, 0.1),
            "max_correctness": (0.1, 0.7, 0.15, 0.05),
            "max_specificity": (0.0, 0.0, 0.1, 0.9),
        }
    )
