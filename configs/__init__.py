"""Configurations of experiments. Each file defines `get_config`.

The file of a method takes the name of the configuration that it changes as its argument:

--config=configs/dapo.py                    the paper's main experiment with DAPO
--config=configs/dapo.py:quickstart         the quickstart with DAPO
--config=configs/binary.py:dapo:quickstart  the quickstart with DAPO and the binary reward
"""

import importlib

import ml_collections


def load(name: str) -> ml_collections.ConfigDict:
    """Returns the configuration of `configs/<name>.py`; text after a colon is its argument."""
    module, _, argument = name.partition(":")
    get_config = importlib.import_module(f"configs.{module}").get_config
    return get_config(argument) if argument else get_config()
