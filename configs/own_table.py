"""Your own images: a CSV, TSV, JSONL or Parquet file with a row for each.

python -m speciarl_jax.tools.check_data --config=configs/own_table.py --out=runs/data_check \
    --config.data.options.path=FILE
python -m speciarl_jax.train --config=configs/own_table.py --workdir=runs/own \
    --config.model.path=CHECKPOINT --config.data.options.path=FILE
"""

import ml_collections

from configs import own_folder


def get_config() -> ml_collections.ConfigDict:
    """`own_folder.py` with a table."""
    config = own_folder.get_config()
    config.data.name = "table"
    with config.unlocked():
        options = config.data.options
        options.image_column = "image"  # path, or in Parquet the image itself
        options.label_column = "label"
        options.label_path_column = ""  # "animal > bird > duck > mallard"; "": none
        options.id_column = ""  # "": the path is a row's identity
        options.root = ""  # where relative paths start; "": the folder of the table
    return config
