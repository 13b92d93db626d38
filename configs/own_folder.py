"""Your own images: a folder for each label.

python -m speciarl_jax.tools.check_data --config=configs/own_folder.py --out=runs/data_check \
    --config.data.options.path=FOLDER
python -m speciarl_jax.train --config=configs/own_folder.py --workdir=runs/own \
    --config.model.path=CHECKPOINT --config.data.options.path=FOLDER

A tenth of the images of each label is held out. Folders that are named after splits (train, val,
test) are used as such: training reads train, evaluation val or else test. If your splits lie apart,
set config.evaluation.options.path as well, and `part` to "all" in both sections. The taxonomy
verifier must know more general names of each label: nest the folders (animal/bird/duck/mallard), or
set config.data.options.group ("bird").

configs/own_folder.py:quickstart has the sizes and rates of the quickstart, for a tiny policy of
your own (configs/own_folder_sft.py).
"""

import ml_collections
from ml_collections import config_dict

import configs


def get_config(sizes: str = "base") -> ml_collections.ConfigDict:
    """Changes the data set of the configuration `sizes`."""
    config = configs.load(sizes)
    config.data.name = "folder"
    config.data.options = ml_collections.ConfigDict()
    config.data.options.path = config_dict.placeholder(str)
    config.data.options.group = ""  # what all labels are ("bird"); "": the outermost folder
    # Name of the folder of a split; "": the one that fits `part`; "none": such names are labels.
    config.data.options.split = ""
    config.data.options.part = "training"
    config.data.options.held_out_share = 0.1
    config.data.options.subset = 0  # balanced over the labels; 0: all
    config.data.options.subset_seed = 0
    config.data.max_pixels = 640 * 640
    config.data.bucket_growth = 1.25  # photographs have many sizes
    config.data.workers = 8
    config.evaluation.options = ml_collections.ConfigDict()
    # The same folder unless it is changed.
    config.evaluation.options.path = config.data.options.get_oneway_ref("path")
    config.evaluation.options.split = ""
    config.evaluation.options.part = "held_out"
    config.evaluation.options.subset = 0
    return config
