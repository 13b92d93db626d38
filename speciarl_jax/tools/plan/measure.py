"""What a compiled program needs on each chip, and the advice where that is too much."""

import dataclasses
import pathlib
import re
import tempfile
import time
from collections.abc import Iterator
from typing import Any

import jax

from speciarl_jax.tools.plan import cost, hlo
from speciarl_jax.tools.plan.chips import Chip
from speciarl_jax.tools.plan.programs import Abstract, Program

_UNITS = {"": 1, "B": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
# What the compiler says it would need.
_NEEDED = (
    re.compile(r"\(([\d.]+)([KMGT]?)\) exceeds available"),
    re.compile(r"Used ([\d.]+)([KMGT]?) of [\d.]+[KMGT]? hbm"),
)


@dataclasses.dataclass(frozen=True)
class Finding:
    """A program on one chip; bytes and FLOPs are of the chip."""

    name: str
    # At its peak, with what lies beside it; at least, if it could not be compiled.
    per_chip_bytes: int
    capacity_bytes: int | None  # that a program may use; None for processors
    contributors: dict[str, int]  # what -> bytes, the parts of `per_chip_bytes`, largest first
    flops: float  # our count
    bytes_accessed: float  # of the chip's memory, our count
    collectives: list[hlo.Collective]  # of the compiled program, largest first
    open_loops: int  # loops whose turns are not in the program
    # A lower bound, as nothing reaches its peak; None for processors.
    estimated_seconds: float | None
    bounds: dict[str, float]  # what -> seconds
    xla: dict[str, float]  # figures of the compiler's own analyses; empty if it gave none
    compile_seconds: float
    error: str  # what the compiler said, "" if it compiled

    @property
    def fits(self) -> bool | None:
        if self.capacity_bytes is None:
            return None
        return not self.error and self.per_chip_bytes <= self.capacity_bytes

    def record(self) -> dict[str, Any]:
        """As JSON takes it."""
        found = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        found["collectives"] = [
            dataclasses.asdict(c) | {"total_bytes": c.total_bytes} for c in self.collectives
        ]
        return found | {"fits": self.fits}


def measure(plan: Abstract, program: Program, chip: Chip | None) -> Finding:
    """Compiles a program and takes its measure."""
    begun, error, compiled = time.perf_counter(), "", None
    try:
        compiled, text = _compile(program.lower())
    except jax.errors.JaxRuntimeError as failure:
        error = str(failure)
        if "RESOURCE_EXHAUSTED" not in error:
            raise
    seconds = time.perf_counter() - begun
    resident = cost.shard_bytes(program.resident)
    known = {
        "parameters": cost.shard_bytes(plan.run.base) + cost.shard_bytes(plan.state.lora),
        "optimizer": cost.shard_bytes(plan.state.opt_state),
    }
    if program.name in ("rollout", "step"):
        known["KV cache"] = cost.cache_bytes(plan)
    xla, collectives, open_loops = {}, [], 0
    if compiled is not None:
        xla = _xla(compiled)
        turns = plan.run.config.rollout.max_tokens - 1
        collectives, open_loops = hlo.collectives(text, turns)
        peak = int(xla["peak_bytes"])
    else:
        peak = needed_bytes(error) + cost.shard_bytes(program.arguments)
    total = peak + resident
    known["batch, activations and other"] = max(0, total - sum(known.values()))
    phases = cost.phases(plan, program.name)
    bounds = {}
    if chip is not None:
        bounds = {phase.name: phase.seconds(chip) for phase in phases}
        # Of a large group, a chip sends so much; a reduction goes round twice.
        sent = [c.total_bytes * (2 if c.kind == "all-reduce" else 1) for c in collectives]
        bounds["links"] = sum(sent) / chip.link_rate
    return Finding(
        name=program.name,
        per_chip_bytes=total,
        capacity_bytes=None if chip is None else chip.capacity,
        contributors=dict(sorted(known.items(), key=lambda item: -item[1])),
        flops=sum(phase.flops for phase in phases),
        bytes_accessed=sum(phase.bytes for phase in phases),
        collectives=collectives,
        open_loops=open_loops,
        # Exchanges may hide behind products, and products behind exchanges.
        estimated_seconds=None
        if chip is None
        else max(bounds["links"], sum(bounds.values()) - bounds["links"]),
        bounds=bounds,
        xla=xla,
        compile_seconds=seconds,
        error=error,
    )


def _compile(lowered: jax.stages.Lowered) -> tuple[jax.stages.Compiled, str]:
    """The compiled program and its text.

    The compiler itself writes the text: JAX may be older than it, and its own reader refuses
    instructions that only the newer one knows (gathers on the sparse cores of v5p and v6e).
    """
    with tempfile.TemporaryDirectory() as folder:
        compiled = lowered.compile({"xla_dump_to": folder, "xla_dump_hlo_as_text": True})
        [path] = pathlib.Path(folder).glob("*after_optimizations.txt")
        return compiled, path.read_text()


def needed_bytes(error: str) -> int:
    """The memory that a refusal of the compiler names; 0 if it names none."""
    for pattern in _NEEDED:
        found = pattern.search(error)
        if found:
            return int(float(found.group(1)) * _UNITS[found.group(2)])
    return 0


def _xla(compiled: jax.stages.Compiled) -> dict[str, float]:
    memory, analysis = compiled.memory_analysis(), compiled.cost_analysis() or {}
    found = {
        "argument_bytes": memory.argument_size_in_bytes,
        "output_bytes": memory.output_size_in_bytes,
        "temp_bytes": memory.temp_size_in_bytes,
        "alias_bytes": memory.alias_size_in_bytes,
        "code_bytes": memory.generated_code_size_in_bytes,
        "flops_with_loop_bodies_once": analysis.get("flops", 0.0),
    }
    found["peak_bytes"] = (
        found["argument_bytes"]
        + found["output_bytes"]
        + found["temp_bytes"]
        + found["code_bytes"]
        - found["alias_bytes"]
    )
    return found


# Contributor -> keys that make it smaller.
KNOBS = {
    "parameters": (
        "config.mesh.fsdp or config.mesh.tensor larger (config.mesh.data smaller); "
        "config.model.base_weights = 'int8' halves the decoder's part"
    ),
    "optimizer": "config.mesh.fsdp or config.mesh.tensor larger; config.model.lora_rank smaller",
    "KV cache": (
        "config.rollout.kv_cache = 'int8'; config.rollout.max_images_per_chunk smaller, or "
        "config.rollout.cache_bytes; config.rollout.max_tokens smaller; more chips"
    ),
}
_ACTIVATIONS = {
    "rollout": (
        "config.rollout.max_images_per_chunk smaller; config.rollout.num_compactions = 0 (a "
        "smaller loop copies caches); config.data.max_pixels smaller; "
        "config.model.attention = 'splash'"
    ),
    "verify": "config.verifier.options.max_response_bytes smaller",
    "update": (
        "config.train.micro_batches larger; config.train.remat = 'full'; "
        "config.train.logprob_chunk smaller; config.rollout.max_tokens smaller; "
        "config.model.attention = 'splash'"
    ),
}


# A step that is one program is as large as its largest stage.
_ACTIVATIONS["step"] = f"{_ACTIVATIONS['update']}; {_ACTIVATIONS['rollout']}"
_ACTIVATIONS["evaluate"] = f"config.evaluation.batch_size smaller; {_ACTIVATIONS['rollout']}"


def advice(finding: Finding) -> Iterator[dict[str, Any]]:
    """Contributor, bytes, and the keys to change, largest first."""
    for name, size in finding.contributors.items():
        if size:
            keys = KNOBS.get(name) or _ACTIVATIONS[finding.name]
            yield {"what": name, "bytes": size, "keys": keys}
