"""Measures a training step on random weights, with the work of a group shared and without.

    python -m benchmarks --shapes=short,paper --json=bench.json
    python -m benchmarks --shapes=paper --rollouts=1,2,5,10,20 --prompt=150,300,600,1200 \\
        --tokens=24,48,96,192 --plot=sizes.png

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
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags, logging

from benchmarks import limits
from benchmarks.workload import SHAPES, Options, Workload, model_config, random_policy
from speciarl_jax.rollout.types import Rollout
from speciarl_jax.runtime import compiler, exit_codes

# Fields of a shape that may be varied -> what a plot calls them.
AXES = {
    "rollouts": "rollouts of each image, N",
    "prompt": "tokens of a prompt",
    "tokens": "tokens of a completion",
}


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

    def useful_flops(self) -> float:
        """Returns the FLOPs of a step that none with sharing can avoid."""
        about = self.workload.config, self.workload.shape, self.workload.options, self.lengths_BN
        return limits.rollout_useful_flops(*about) + limits.update_useful_flops(*about)

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
    update = row["update_useful_flops"]
    sampling = measurement.useful_flops() - update
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


def ratios(rows: Sequence[dict[str, Any]], useful: float) -> str:
    """Says what a step takes beside what the machine allows, and beside one without sharing.

    Args:
      rows: of one shape, the first with sharing.
      useful: FLOPs of a step that no step with sharing can avoid.
    """
    shared = rows[0]
    share = useful / shared["step_s"] / shared["gemm_flops_per_s"]
    said = (
        f"{shared['shape']}: a step does {share:.0%} of what matrix products of this machine allow"
    )
    for plain in rows[1:]:
        said += (
            f", and is {plain['step_s'] / shared['step_s']:.1f} times as fast as without sharing"
        )
    return said


def plot(sweeps: Mapping[str, Sequence[tuple[int, float]]], title: str, path: str) -> None:
    """Draws a step's seconds against sizes, each beside a line in proportion to it, as a PNG.

    Args:
      sweeps: key of `AXES` -> (size, seconds), the smallest size first.
    """
    import matplotlib.figure

    figure = matplotlib.figure.Figure(figsize=(3.6 * len(sweeps) + 0.4, 3.3), layout="constrained")
    panels = figure.subplots(1, len(sweeps), sharey=True, squeeze=False)[0]
    for axes, (name, found) in zip(panels, sweeps.items(), strict=True):
        sizes, seconds = zip(*found, strict=True)
        axes.plot(sizes, seconds, "o-", label="measured")
        ends = (sizes[0], sizes[-1])
        axes.plot(ends, [seconds[0] / sizes[0] * n for n in ends], ":", label="in proportion")
        axes.set(xlabel=AXES[name], xlim=(0, None))
    top = max(second for found in sweeps.values() for _, second in found)
    panels[0].set(ylabel="seconds a step", ylim=(0, 1.1 * top))
    panels[0].legend()
    figure.suptitle(title)
    figure.savefig(path, dpi=120, format="png")


def main(argv: Sequence[str]) -> None:
    given = flags.FLAGS
    if len(argv) > 1 or not set(given.shapes) <= set(SHAPES) or given.repeats < 1:
        raise app.UsageError(
            f"flags only; --shapes={','.join(given.shapes)} must be some of {','.join(SHAPES)} and "
            f"--repeats={given.repeats} at least 1"
        )
    compiler.compile_quickly()
    config = model_config(given.model)
    options = Options(**{name: given[name].value for name in Options.__dataclass_fields__})
    policy = random_policy(config, options)
    size, clock = given.gemm_size or gemm_size(), limits.Clock(given.clock)
    machine = limits.Machine(jnp.dtype(options.dtype), size, clock)
    sizes = {axis: sorted(map(int, given[axis].value)) for axis in AXES if given[axis].value}
    rows = []
    for name in given.shapes:
        if sizes:
            cases = [
                (f"{name}-{axis}-{n}", dataclasses.replace(SHAPES[name], **{axis: n}), True)
                for axis in sizes
                for n in sizes[axis]
            ]
        else:
            cases = [(name, SHAPES[name], kind) for kind in (True, False)[: 1 + given.plain]]
        workloads = (Workload(config, shape, kind, options, policy) for _, shape, kind in cases)
        measurements = measure(workloads, machine, given.repeats)
        memory_rate = machine.memory_rate()

        for found, (called, *_) in zip(measurements, cases, strict=True):
            rows.append(found.row(called))
            print(describe(rows[-1], found, memory_rate), flush=True)
            if given.profile:
                kind = "shared" if found.workload.shared else "plain"
                trace = pathlib.Path(given.profile) / f"{rows[-1]['shape']}-{kind}"
                with jax.profiler.trace(str(trace)):
                    jax.block_until_ready(found.run_step())
        of_shape = rows[-len(measurements) :]
        if not sizes:
            print(ratios(of_shape, measurements[0].useful_flops()), flush=True)
        elif given.plot:
            seconds = iter([row["step_s"] for row in of_shape])
            sweeps = {axis: [(n, next(seconds)) for n in sizes[axis]] for axis in sizes}
            plot(sweeps, name, given.plot)
    if given.json:
        pathlib.Path(given.json).write_text(json.dumps(rows, indent=1) + "\n")


def define_flags() -> None:
    flags.DEFINE_list("shapes", ["short", "paper"], f"Some of {', '.join(SHAPES)}.")
    flags.DEFINE_string("model", "small", "small, 3B, 7B, 32B, 72B, or a config.json.")
    flags.DEFINE_string("json", None, "File for the list of records.")
    flags.DEFINE_bool("plain", True, "Also measure without sharing.")
    for axis, what in AXES.items():
        flags.DEFINE_list(axis, [], f"Measure a shape with these, with sharing only: {what}.")
    flags.DEFINE_string("plot", None, f"PNG of the step's seconds against {', '.join(AXES)}.")
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
