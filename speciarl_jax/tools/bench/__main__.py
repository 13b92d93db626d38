"""Measures a training step on random weights, with what a group shares and without.

    python -m speciarl_jax.tools.bench --shapes=short,paper --json=bench.json
    python -m speciarl_jax.tools.bench --shapes=paper --rollouts=1,2,5,10,20,64 \\
        --plot=docs/rollouts.png

No checkpoint is needed: the dimensions are those of `SMALL` (5.67 million parameters), of a
published size (--model=3B) or of a `config.json` (--model=PATH). Answers never end, unless
--mean_length asks for answers of random lengths. The plain counterpart gives every answer its own
image, vision pass, prefill, and whole sequence in the update, by the same code. Its micro-batches
are tried in several sizes, and the fastest counts.
"""

import collections
import dataclasses
import json
import pathlib
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags, logging

from speciarl_jax.rollout.types import Rollout
from speciarl_jax.runtime import exit_codes
from speciarl_jax.tools.bench.limits import (
    Clock,
    Machine,
    decode_bytes,
    rollout_useful_flops,
    update_useful_flops,
)
from speciarl_jax.tools.bench.workload import SHAPES, Options, Workload, model_config, random_policy


class Measurement:
    """Compiled programs of a workload and how long they took."""

    def __init__(self, workload: Workload):
        """Compiles the three programs and runs each."""
        self.workload, self.seconds = workload, collections.defaultdict(list)
        begun = time.perf_counter()
        w, lora = workload, workload.lora
        rollout = jax.jit(w.rollout).lower(lora, w.base, w.batch).compile()
        features_BMD, answers = jax.block_until_ready(rollout(lora, w.base, w.batch))
        lengths = np.asarray(jnp.sum(answers.mask_BNT, axis=-1))
        self.lengths_BN = lengths.reshape(w.shape.images, w.shape.answers)
        update = self._fastest_update(features_BMD, answers)
        compile_begun = time.perf_counter()
        self.step = jax.jit(w.step, donate_argnums=0).lower(w.state(), w.base, w.batch).compile()
        self.compile_s = time.perf_counter() - compile_begun
        self.programs = {
            "rollout_s": lambda: rollout(lora, w.base, w.batch),
            "update_s": lambda: update(w.state(), w.base, w.batch, features_BMD, answers),
            "step_s": self.run_step,
        }
        jax.block_until_ready([program() for program in self.programs.values()])
        logging.info("compiled and warm after %.1f s", time.perf_counter() - begun)

    def _fastest_update(self, features_BMD: jax.Array, answers: Rollout) -> Callable:
        """The update with the fastest of the workload's numbers of micro-batches."""
        w, found = self.workload, {}
        for parts in w.candidates:
            w.parts = parts
            # A function of its own: what is traced depends on `w.parts`.
            update = jax.jit(lambda *args: w.update(*args), donate_argnums=0)
            update = update.lower(w.state(), w.base, w.batch, features_BMD, answers).compile()
            seconds = []
            for _ in range(3 if len(w.candidates) > 1 else 1):
                state = jax.block_until_ready(w.state())
                begun = time.perf_counter()
                jax.block_until_ready(update(state, w.base, w.batch, features_BMD, answers))
                seconds.append(time.perf_counter() - begun)
            found[parts] = min(seconds), update
            logging.info("%d micro-batches: update %.2f s", parts, min(seconds))
        w.parts = min(found, key=lambda parts: found[parts][0])
        return found[w.parts][1]

    def run_step(self) -> Any:
        return self.step(self.workload.state(), self.workload.base, self.workload.batch)

    def repeat(self, clock: Clock, machine: Machine) -> None:
        """Times every program once, and the machine beside them."""
        self.seconds["gemm"].append(machine.gemm_rate())
        for name, program in self.programs.items():
            self.seconds[name].append(clock.time(program)[0])

    def row(self, name: str) -> dict[str, Any]:
        """The record of this measurement; medians."""
        w, found = self.workload, {k: statistics.median(v) for k, v in self.seconds.items()}
        memory = self.step.memory_analysis()
        return {
            "shape": name,
            "shared": w.shared,
            "rollout_tokens_per_s": float(self.lengths_BN.sum() / found["rollout_s"]),
            "rollout_s": found["rollout_s"],
            "update_s": found["update_s"],
            "step_s": found["step_s"],
            "compile_s": self.compile_s,
            "peak_bytes": memory.argument_size_in_bytes
            + memory.output_size_in_bytes
            + memory.temp_size_in_bytes
            - memory.alias_size_in_bytes,
            "gemm_flops_per_s": found["gemm"],
            "update_useful_flops": update_useful_flops(
                w.config, w.shape, w.options, self.lengths_BN
            ),
        }


def describe(row: dict[str, Any], measurement: Measurement, memory_rate: float) -> str:
    """A record as text, each time as a share of the machine's limit."""
    w = measurement.workload
    about = w.config, w.shape, w.options, measurement.lengths_BN
    update, sampling = row["update_useful_flops"], rollout_useful_flops(*about)
    rate = row["gemm_flops_per_s"]
    read = decode_bytes(*about) / row["rollout_s"] / memory_rate
    return (
        f"{row['shape']:12} {'shared' if row['shared'] else 'plain':6} "
        f"rollout {row['rollout_s']:7.3f} s {row['rollout_tokens_per_s']:8.0f} tok/s "
        f"({sampling / row['rollout_s'] / rate:.0%} of GEMM, {read:.0%} of memory)  "
        f"update {row['update_s']:7.3f} s in {w.parts} ({update / row['update_s'] / rate:.0%} of "
        f"GEMM)  step {row['step_s']:7.3f} s ({(sampling + update) / row['step_s'] / rate:.0%} of "
        f"GEMM)  compile {row['compile_s']:5.1f} s  peak {row['peak_bytes'] / 2**20:7.0f} MiB  "
        f"GEMM {row['gemm_flops_per_s'] / 1e9:.0f} GFLOP/s"
    )


def gemm_size() -> int:
    """Side of matrices whose product keeps this machine busy; of smaller ones the rate is lower."""
    return 2048 if jax.default_backend() == "cpu" else 8192


def plot(rows: Sequence[dict[str, Any]], answers: Sequence[int], path: str) -> None:
    """Seconds of a whole step against N, as a PNG, beside a line in proportion to N."""
    import matplotlib.figure

    figure = matplotlib.figure.Figure(figsize=(5, 3.5), layout="constrained")
    axes = figure.add_subplot()
    seconds = [row["step_s"] for row in rows]
    axes.plot(answers, seconds, "o-", label="measured")
    first = seconds[0] / answers[0]
    axes.plot(answers, [first * n for n in answers], ":", label="in proportion to N")
    axes.set(xlabel="answers about each image, N", ylabel="seconds a step")
    axes.set_title(rows[0]["shape"].split("-n")[0])
    axes.set_ylim(0, 1.3 * max(seconds))
    axes.legend()
    figure.savefig(path, dpi=120, format="png")


def main(argv: Sequence[str]) -> None:
    given = flags.FLAGS
    unknown = [name for name in given.shapes if name not in SHAPES]
    if len(argv) > 1 or unknown or given.repeats < 1:
        raise app.UsageError(
            f"flags only; --shapes={','.join(given.shapes)} must be some of {','.join(SHAPES)} and "
            f"--repeats={given.repeats} at least 1"
        )
    config = model_config(given.model)
    names = [field.name for field in dataclasses.fields(Options) if field.name != "dtype"]
    options = Options(dtype=jnp.dtype(given.dtype), **{name: given[name].value for name in names})
    if not options.scan_unroll:
        options = dataclasses.replace(options, scan_unroll=config.text.num_layers)
    policy = random_policy(config, options)
    clock = Clock(given.clock)
    machine = Machine(options.dtype, given.gemm_size or gemm_size(), clock)
    counts = [int(n) for n in given.rollouts]
    rows = []
    for name in given.shapes:
        shape = SHAPES[name]
        # With a list of N only the shared step is of interest.
        cases = [(n, True) for n in counts] or [(shape.answers, True)]
        cases += [(shape.answers, False)] if given.plain and not counts else []
        measurements = [
            Measurement(
                Workload(config, dataclasses.replace(shape, answers=n), shared, options, policy)
            )
            for n, shared in cases
        ]
        # Taking turns, so that what slows the machine down for a while slows all of them down.
        for _ in range(given.repeats):
            for measurement in measurements:
                measurement.repeat(clock, machine)
        memory_rate = machine.memory_rate()
        for (n, shared), measurement in zip(cases, measurements, strict=True):
            rows.append(measurement.row(f"{name}-n{n}" if counts else name))
            print(describe(rows[-1], measurement, memory_rate), flush=True)
            if given.profile:
                kind = rows[-1]["shape"] + ("-shared" if shared else "-plain")
                with jax.profiler.trace(str(pathlib.Path(given.profile) / kind)):
                    jax.block_until_ready(measurement.run_step())
        if counts and given.plot:
            plot(rows[-len(counts) :], counts, given.plot)
    if given.json:
        pathlib.Path(given.json).write_text(json.dumps(rows, indent=1) + "\n")


def define_flags() -> None:
    flags.DEFINE_list("shapes", ["short", "paper"], f"Some of {', '.join(SHAPES)}.")
    flags.DEFINE_string("model", "small", "small, 3B, 7B, 32B, 72B, or a config.json.")
    flags.DEFINE_enum("dtype", "float32", ["float32", "bfloat16"], "Of weights and products.")
    flags.DEFINE_string("json", None, "File for the list of records.")
    flags.DEFINE_bool("plain", True, "Also measure without sharing.")
    flags.DEFINE_list("rollouts", [], "Measure these N, with sharing only.")
    flags.DEFINE_string("plot", None, "PNG of the step's seconds against --rollouts, one shape.")
    flags.DEFINE_string("profile", None, "Folder for a trace of one step of each.")
    flags.DEFINE_integer("repeats", 5, "Of every program; the median counts.")
    flags.DEFINE_enum("clock", "wall", ["wall", "cpu"], "Seconds of the wall, or of the processor.")
    flags.DEFINE_integer(
        "gemm_size", 0, "Side of the matrices that give the GEMM rate; 0: 2048 on CPU, else 8192."
    )
    flags.DEFINE_integer("lora_rank", 16, "Of the adapters.")
    flags.DEFINE_integer("scan_unroll", 0, "config.model.scan_unroll; 0 for all layers.")
    flags.DEFINE_integer("logprob_chunk", 16, "config.train.logprob_chunk.")
    flags.DEFINE_enum("remat", "none", ["none", "dots", "full"], "config.train.remat.")
    flags.DEFINE_float("kl_coefficient", 0.01, "0 leaves out the reference pass.")
    flags.DEFINE_integer("mean_length", 0, "Of the answers, about; 0 for answers that never end.")
    flags.DEFINE_bool("merge_lora", True, "config.rollout.merge_lora.")
    flags.DEFINE_integer("num_compactions", 2, "config.rollout.num_compactions.")
    flags.DEFINE_integer("num_length_buckets", 1, "config.train.num_length_buckets.")
    flags.DEFINE_integer("seed", 0, "Of weights, images and answers.")


if __name__ == "__main__":
    define_flags()
    exit_codes.run_tool("bench", main)
