"""The paper's algorithm with some fields changed, for tests of its parts."""

import dataclasses

from configs import base
from speciarl_jax.experiment import algorithm


def made(**changes):
    """`configs/base.py` as an `Algorithm`; it logs no images unless asked to."""
    whole = algorithm.from_config(base.get_config())
    changes = {"num_logged_images": 0, "mini_batches": 1} | changes
    return dataclasses.replace(whole, **changes)
