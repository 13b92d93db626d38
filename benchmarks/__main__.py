"""Measures a training step on random weights, with the work of a group shared and without.

    python -m benchmarks --shapes=short,paper --json=bench.json
    python -m benchmarks --shapes=paper --rollouts=1,2,5,10,20,64 \\
        --plot=docs/rollouts.png

No checkpoint is needed: the dimensions are those of `SMALL` (5.67 million parameters), of a
published size (--model=3B) or of a `config.json` (--model=PATH). Completions never end, unless
--mean_length asks for random lengths. Without sharing ("plain"), every rollout has its own image,
vision pass, prefill, and whole sequence in the update, by the same code. Where a shape lists
several numbers of micro-batches, all are tried and the fastest counts.
"""

import collections
import dataclasses
import functools
import json
import pathlib
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags, logging

from benchmarks import limits
from benchmarks.workload import SHAPES, Options, Workload, model_config, random_policy
from speciarl_jax.rollout.types import Rollout
from speciarl_jax.runtime import exit_codes


class Measurement:
    """Holds the compiled programs of a workload and the seconds that they took."""

    def __init__(self, workload: Workload):
        """Compiles rollout, update and step, and runs each once."""
        self.workload, self.seconds = workload, collections.defaultdict(list)
        begun = time.perf_counter()
        w, rollout = workload, jax.jit(workload.rollout)
        features_BMD, rollouts = rollout(w.lora, w.base, w.batch)
        lengths = np.asarray(jnp.sum(rollouts.mask_BNT, axis=-1))
        self.lengths_BN = lengths.reshape(w.shape.images, w.shape.rollouts)
        update = self._fastest_update(features_BMD, rollouts)
        compile_begun = time.perf_counter()
        self.step = jax.jit(w.step, donate_argnums=0).lower(w.state(), w.base, w.batch).compile()
        self.compile_s = time.perf_counter() - compile_begun
        self.programs = {
            "rollout_s": lambda: rollout(w.lora, w.base, w.batch),
            "update_s": lambda: update(w.state(), w.base, w.batch, features_BMD, rollouts),
            "step_s": self.run_step,
        }
        jax.block_until_ready([program() for program in self.programs.values()])
        logging.info("compiled and warm after %.1f s", time.perf_counter() - begun)

    def _fastest_update(self, features_BMD: jax.Array, rollouts: Rollout) -> Callable:
        """Compiles the update for each number of micro-batches; keeps the fastest."""
        w, wall, found = self.workload, limits.Clock("wall"), {}
        for count in w.candidates:
            update = jax.jit(functools.partial(w.update, micro_batches=count), donate_argnums=0)
            # The first call compiles.
            _, *seconds = (
                wall.time(update, w.state(), w.base, w.batch, features_BMD, rollouts)
                for _ in range(3)
            )
            found[count] = min(seconds), update
            logging.info("%d micro-batches: update %.2f s", count, min(seconds))
        w.micro_batches = min(found, key=lambda count: found[count][0])
        return found[w.micro_batches][1]

    def run_step(self) -> Any:
        """Runs the step as one program."""
        return self.step(self.workload.state(), self.workload.base, self.workload.batch)

    def repeat(self, machine: limits.Machine) -> None:
        """Times every program once, and matrix products beside them."""
        self.seconds["gemm"].append(machine.gemm_rate())
        for name, program in self.programs.items():
            self.seconds[name].append(machine.clock.time(program))

    def row(self, name: str) -> dict[str, Any]:
        """Returns the record of this measurement: medians, in seconds, bytes and FLOP/s."""
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
            "update_useful_flops": limits.update_useful_flops(
                w.config, w.shape, w.options, self.lengths_BN
            ),
        }


def measure(
    workloads: Iterable[Workload], machine: limits.Machine, repeats: int
) -> list[Measurement]:
    """Measures workloads in turns, so that whatever slows the machine down slows all of them."""
    measurements = [Measurement(workload) for workload in workloads]
    for _ in range(repeats):
        for measurement in measurements:
            measurement.repeat(machine)
    return measurements


def describe(row: dict[str, Any], measurement: Measurement, memory_rate: float) -> str:
    """Formats a record as one line; the useful work as a share of what the machine can do."""
    w = measurement.workload
    about = w.config, w.shape, w.options, measurement.lengths_BN
    update, sampling = row["update_useful_flops"], limits.rollout_useful_flops(*about)
    rate = row["gemm_flops_per_s"]
    read = limits.decode_bytes(*about) / row["rollout_s"] / memory_rate
    return (
        f"{row['shape']:12} {'shared' if row['shared'] else 'plain':6} "
        f"rollout {row['rollout_s']:7.3f} s {row['rollout_tokens_per_s']:8.0f} tok/s "
        f"({sampling / row['rollout_s'] / rate:.0%} of GEMM, {read:.0%} of memory)  "
        f"update {row['update_s']:7.3f} s in {w.micro_batches} "
        f"({update / row['update_s'] / rate:.0%} of GEMM)  "
        f"step {row['step_s']:7.3f} s ({(sampling + update) / row['step_s'] / rate:.0%} of GEMM)  "
        f"compile {row['compile_s']:5.1f} s  peak {row['peak_bytes'] / 2**20:7.0f} MiB  "
        f"GEMM {rate / 1e9:.0f} GFLOP/s"
    )


def gemm_size() -> int:
    """Returns a side of matrices whose product keeps this machine busy."""
    return 2048 if jax.default_backend() == "cpu" else 8192


def plot(rows: Sequence[dict[str, Any]], counts: Sequence[int], path: str) -> None:
    """Draws a step's seconds against N (`counts`) as a PNG, beside a line proportional to N."""
    import matplotlib.figure

    figure = matplotlib.figure.Figure(figsize=(5, 3.5), layout="constrained")
    axes = figure.add_subplot()
    seconds = [row["step_s"] for row in rows]
    axes.plot(counts, seconds, "o-", label="measured")
    axes.plot(counts, [seconds[0] / counts[0] * n for n in counts], ":", label="in proportion to N")
    axes.set(xlabel="rollouts of each image, N", ylabel="seconds a step")
    axes.set_title(rows[0]["shape"].split("-n")[0])
    axes.set_ylim(0, 1.3 * max(seconds))
    axes.legend()
    figure.savefig(path, dpi=120, format="png")


def main(argv: Sequence[str]) -> None:
    given = flags.FLAGS
    if len(argv) > 1 or not set(given.shapes) <= set(SHAPES) or given.repeats < 1:
        raise app.UsageError(
            f"flags only; --shapes={','.join(given.shapes)} must be some of {','.join(SHAPES)} and "
            f"--repeats={given.repeats} at least 1"
        )
    config = model_config(given.model)
    options = Options(**{name: given[name].value for name in Options.__dataclass_fields__})
    policy = random_policy(config, options)
    size, clock = given.gemm_size or gemm_size(), limits.Clock(given.clock)
    machine = limits.Machine(jnp.dtype(options.dtype), size, clock)
    counts, rows = [int(n) for n in given.rollouts], []
    for name in given.shapes:
        shapes = [dataclasses.replace(SHAPES[name], rollouts=n) for n in counts] or [SHAPES[name]]
        kinds = (True, False) if given.plain and not counts else (True,)
        workloads = (Workload(config, s, kind, options, policy) for s in shapes for kind in kinds)
        measurements = measure(workloads, machine, given.repeats)
        memory_rate = machine.memory_rate()

        for found in measurements:
            rows.append(found.row(f"{name}-n{found.workload.shape.rollouts}" if counts else name))
            print(describe(rows[-1], found, memory_rate), flush=True)
            if given.profile:
                kind = "shared" if found.workload.shared else "plain"
                trace = pathlib.Path(given.profile) / f"{rows[-1]['shape']}-{kind}"
                with jax.profiler.trace(str(trace)):
                    jax.block_until_ready(found.run_step())
        if counts and given.plot:
            plot(rows[-len(counts) :], counts, given.plot)
    if given.json:
        pathlib.Path(given.json).write_text(json.dumps(rows, indent=1) + "\n")


def define_flags() -> None:
    flags.DEFINE_list("shapes", ["short", "paper"], f"Some of {', '.join(SHAPES)}.")
    flags.DEFINE_string("model", "small", "small, 3B, 7B, 32B, 72B, or a config.json.")
    flags.DEFINE_string("json", None, "File for the list of records.")
    flags.DEFINE_bool("plain", True, "Also measure without sharing.")
    flags.DEFINE_list("rollouts", [], "Measure these N, with sharing only.")
    flags.DEFINE_string("plot", None, "PNG of the step's seconds against --rollouts.")
    flags.DEFINE_string("profile", None, "Folder for a trace of one step of each.")
    flags.DEFINE_integer("repeats", 5, "Of every program; the median counts.")
    flags.DEFINE_enum("clock", "wall", ["wall", "cpu"], "Wall time, or processor time.")
    flags.DEFINE_integer(
        "gemm_size", 0, "Side of the matrices that give the GEMM rate; 0: 2048 on CPU, else 8192."
    )
    define = {int: flags.DEFINE_integer, float: flags.DEFINE_float, bool: flags.DEFINE_bool}
    for option in dataclasses.fields(Options):
        if choices := option.metadata["choices"]:
            flags.DEFINE_enum(option.name, option.default, choices, option.metadata["help"])
        else:
            define[option.type](option.name, option.default, option.metadata["help"])


if __name__ == "__main__":
    define_flags()
    exit_codes.run_tool("bench", main)
