"""The label tree as a verifier on the host, and a program that trains with dynamic sampling.

The host and the device implementation of the tree agree on everything, so runs with either must be
the same. `python host_taxonomy.py OPTIONS` with the JSON that `program` takes.
"""

import concurrent.futures
import dataclasses
import json
import pathlib
import sys
import time

import jax
import numpy as np
import small_run
from judged_run import judged_config

from speciarl_jax import train
from speciarl_jax.experiment.run import prepare
from speciarl_jax.verifiers.base import HostVerifier, Verdicts
from speciarl_jax.verifiers.category import Category


class HostTaxonomy(HostVerifier):
    """Says what the tree says, and nothing on texts that it does not know."""

    def __init__(self, taxonomy, unknown=lambda text: False, seconds=0.0):
        self.taxonomy, self.unknown, self.seconds = taxonomy, unknown, seconds

    def submit(self, responses, label_index):
        time.sleep(self.seconds)
        shape = (len(responses), len(responses[0]) if len(responses) else 0)
        said = [
            (text, self.taxonomy.leaf_ids[label])
            for group, label in zip(responses, label_index, strict=True)
            for text in group
        ]
        valid = np.array([not self.unknown(text) for text, _ in said], bool).reshape(shape)
        category = [self.taxonomy.response_category(*pair, tags="think") for pair in said]
        category = np.array(category, np.int32).reshape(shape)
        category = np.where(valid, category, int(Category.UNPARSED))
        future = concurrent.futures.Future()
        future.set_result(
            Verdicts(category, valid, np.zeros(shape, bool), np.full(shape, 0.5, np.float32))
        )
        return future

    def errors(self):
        return "the tree is ill"

    def close(self):
        pass


def dynamic_config(**changes):
    """Rounds of four images, until four groups have signal."""
    defaults = {
        "verifier__name": "taxonomy",
        "train__steps": 3,
        "train__dynamic_sampling__max_rounds": 4,
        "train__dynamic_sampling__batch_size": 4,
        "rollout__num_rollouts": 3,
        "rollout__num_compactions": 0,  # one loop to compile, not three
    }
    return judged_config("http://127.0.0.1:1/v1", "", **defaults | changes)


def on_host(run, **options):
    """The same run with its tree on the host."""
    return dataclasses.replace(run, verifier=HostTaxonomy(run.labels, **options))


def program(workdir, host, config=None, seconds=0.0, out=None, process=0, processes=1, port=0):
    """Trains as process `process` of `processes`."""
    jax.config.update("jax_disable_most_optimizations", True)
    if processes > 1:
        jax.distributed.initialize(f"127.0.0.1:{port}", processes, process)
    run = prepare(dynamic_config(**config or {}))
    run = on_host(run, seconds=seconds) if host else run
    lora, _ = train.train(run, pathlib.Path(workdir))
    if out:
        np.savez(f"{out}_{process}.npz", **small_run.arrays(lora))


if __name__ == "__main__":
    program(**json.loads(sys.argv[1]))
