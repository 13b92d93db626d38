"""Measures how long the devices wait for a judge on the host, in turn and with a batch ahead.

    python -m benchmarks.judge_wait --latency=2 --steps=8 --ahead=0,1

Trains the tiny policy that ships. In place of a judge behind HTTP, the label tree answers on the
host, so many seconds after it was asked. Prints the share of the steps' time in which nothing was
sampled or learned (`time/verify`, `time/device_idle`), without the first two steps, which compile.
"""

import concurrent.futures
import contextlib
import dataclasses
import json
import pathlib
import tempfile
import time
from collections.abc import Sequence

import numpy as np
from absl import app, flags

from configs import quickstart
from speciarl_jax import train
from speciarl_jax.experiment import run as run_lib
from speciarl_jax.runtime import compilation_cache, compiler, exit_codes
from speciarl_jax.verifiers import parsing
from speciarl_jax.verifiers.base import HostVerifier, Verdicts
from speciarl_jax.verifiers.category import Category
from speciarl_jax.verifiers.taxonomy import Taxonomy

COMPILED = 2  # steps that compile programs


class SlowTree(HostVerifier):
    """Judges by a label tree, and takes its time."""

    def __init__(self, labels: Taxonomy, latency: float):
        """Args: latency: seconds from a question to its answer."""
        self._labels, self._latency = labels, latency
        self._pool = concurrent.futures.ThreadPoolExecutor(4)

    def submit(
        self, responses: Sequence[Sequence[str]], label_index: Sequence[int]
    ) -> concurrent.futures.Future[Verdicts]:
        return self._pool.submit(self._judge, responses, label_index, time.monotonic())

    def _judge(self, responses, label_index, asked):
        category = [
            [self._category(text, self._labels.leaf_ids[label]) for text in group]
            for group, label in zip(responses, label_index, strict=True)
        ]
        category_BN = np.array(category, np.int32)
        time.sleep(max(0.0, asked + self._latency - time.monotonic()))
        shape = category_BN.shape
        seconds_BN = np.full(shape, self._latency)
        return Verdicts(category_BN, np.ones(shape, bool), np.zeros(shape, bool), seconds_BN)

    def _category(self, text: str, label_id: str) -> int:
        content = parsing.extract(text, tags="think")
        return int(
            Category.UNPARSED if content is None else self._labels.category(content, label_id)
        )

    def errors(self) -> str:
        return ""

    def close(self) -> None:
        self._pool.shutdown()


def share_waited(ahead: int, latency: float, steps: int, batch_size: int) -> dict[str, float]:
    """Trains, and returns means over the steps that compile nothing, in seconds, and the share."""
    config = quickstart.get_config()
    config.train.update({"steps": steps, "batch_size": batch_size, "ahead": 0})
    config.optimizer.decay_steps = 0
    compilation_cache.enable(config.compilation_cache)
    run = run_lib.prepare(config)
    # A label tree on the host is no verifier of the configuration, so both come in afterwards.
    config.train.ahead = ahead
    run = dataclasses.replace(run, verifier=SlowTree(run.labels, latency))
    with tempfile.TemporaryDirectory() as workdir, contextlib.closing(run.verifier):
        train.train(run, workdir)
        lines = (pathlib.Path(workdir) / "metrics.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines][COMPILED:]
    names = ("time/step", "time/verify", "time/device_idle", "update/sampler_kl", "reward/mean")
    found = {name: float(np.mean([row[name] for row in rows])) for name in names}
    waited = found["time/verify"] + found["time/device_idle"]
    return found | {"share": waited / found["time/step"]}


def main(argv: Sequence[str]) -> None:
    """Prints a line for each value of --ahead."""
    del argv
    given = flags.FLAGS
    compiler.compile_quickly()
    for ahead in map(int, given.ahead):
        found = share_waited(ahead, given.latency, given.steps, given.batch_size)
        print(
            f"ahead {ahead}: waited {found['share']:.1%} of a step "
            f"({found['time/step']:.2f} s); sampler KL {found['update/sampler_kl']:.2e}, "
            f"reward {found['reward/mean']:.3f}",
            flush=True,
        )


if __name__ == "__main__":
    flags.DEFINE_float("latency", 2.0, "Seconds from a question to its answer.")
    flags.DEFINE_integer("steps", 8, "Steps of each run.", lower_bound=COMPILED + 1)
    flags.DEFINE_integer("batch_size", 64, "Images of a step.")
    flags.DEFINE_list("ahead", ["0", "1"], "Values of config.train.ahead.")
    app.run(exit_codes.guarded(main))
