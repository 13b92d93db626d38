"""Experiments. Each file has `get_config`; those of a method take the file they change as argument:

--config=configs/dapo.py                    the paper's main experiment with DAPO
--config=configs/dapo.py:quickstart         the quickstart with DAPO
--config=configs/binary.py:dapo:quickstart  and with the binary reward
"""

import importlib

import ml_collections


def load(name: str) -> ml_collections.ConfigDict:
    """The configuration of `configs/<name>.py`; what stands behind a colon is its argument."""
    module, _, argument = name.partition(":")
    get_config = importlib.import_module(f"configs.{module}").get_config
    return get_config(argument) if argument else get_config()
