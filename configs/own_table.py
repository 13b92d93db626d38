"""Your own images: a CSV, TSV, JSONL or Parquet file with a row for each image.

The path may also be a folder of tables: Parquet shards, what `save_to_disk` of `datasets` wrote, or
an `imagefolder` with metadata.jsonl.

python -m speciarl_jax.tools.check_data --config=configs/own_table.py --out=runs/data_check \
    --config.data.options.path=FILE
python -m speciarl_jax.train --config=configs/own_table.py --workdir=runs/own \
    --config.model.path=CHECKPOINT --config.data.options.path=FILE
"""

import ml_collections

from configs import own_folder


def get_config(sizes: str = "base") -> ml_collections.ConfigDict:
    """Changes the data set of `own_folder.py`, which has that of `sizes`."""
    config = own_folder.get_config(sizes)
    config.data.name = "table"
    with config.unlocked():
        options = config.data.options
        options.image_column = "image"  # paths, or in Parquet the images themselves
        options.label_column = "label"
        options.label_path_column = ""  # "animal > bird > duck > mallard"; "": none
        options.label_path_separator = ""  # between its names; "": found in the paths
        options.id_column = ""  # "": the path identifies a row
        options.root = ""  # folder of relative paths; "": that of the table
    return config
