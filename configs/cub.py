"""The paper's training set: 3,000 images of birds (CUB-200-2011), evaluated on its test split.

python -m speciarl_jax.tools.prepare_data --dataset=caltech_birds2011 --data_dir=DATA
python -m speciarl_jax.train --config=configs/cub.py --workdir=runs/cub \
    --config.model.path=CHECKPOINT --config.data.options.data_dir=DATA

The paper's 165 steps are 15 epochs of 11 batches; it drops the rest of each epoch. Here a batch may
span two epochs, so 165 steps are 14.1 epochs, and every epoch holds each image once.

Out of domain: --config.evaluation.options.dataset=oxford_iiit_pet (any of data/tfds_images.py).
"""

import ml_collections

from configs import base


def get_config() -> ml_collections.ConfigDict:
    """Changes the data set of `base.py`."""
    config = base.get_config()
    config.data.name = "tfds_images"
    # The label tree first; set verifier.cascade.judge, and a judge decides what it does not know.
    config.verifier.name = "cascade"
    config.data.options = ml_collections.ConfigDict()
    config.data.options.dataset = "caltech_birds2011"
    config.data.options.split = "train"
    config.data.options.data_dir = ""  # "": ~/tensorflow_datasets
    config.data.options.check_sizes = True
    config.data.options.split_file = ""  # CoOp's split_zhou_*.json; "": the splits of TFDS
    config.data.options.subset = 3000  # balanced over the labels; 0: all
    config.data.options.subset_seed = 0
    # 640 x 640 pixels are 529 image tokens; most of these photographs are smaller.
    config.data.max_pixels = 640 * 640
    config.data.workers = 8
    # Three programs, as they were planned (launch/plans): each has the memory to itself.
    config.train.fused = False
    config.evaluation.options = ml_collections.ConfigDict()
    config.evaluation.options.dataset = "caltech_birds2011"
    config.evaluation.options.split = "test"
    config.evaluation.options.subset = 0
    return config
