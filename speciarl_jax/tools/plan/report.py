"""A plan as a record for JSON, and as text."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax

from speciarl_jax.tools.plan import cost
from speciarl_jax.tools.plan.chips import Chip
from speciarl_jax.tools.plan.measure import Finding, advice
from speciarl_jax.tools.plan.programs import Abstract

_GIB = 2**30
# Collectives and pieces of advice that the text shows.
_SHOWN = 8


def record(plan: Abstract, topology: str, found: Sequence[Finding]) -> dict[str, Any]:
    """All that is known of a plan; `text` prints it."""
    config, model = plan.run.config, plan.run.model_config
    train, rollout = config.train, config.rollout
    return {
        "topology": topology,
        "chips": plan.run.mesh.size,
        "mesh": dict(plan.run.mesh.shape),
        "jax": jax.__version__,
        "model": {
            "parameters": sum(x.size for x in jax.tree.leaves(plan.run.base)),
            "adapters": sum(x.size for x in jax.tree.leaves(plan.run.lora)),
            "layers": model.text.num_layers,
            "hidden_size": model.text.hidden_size,
            "base_weights": config.model.base_weights,
        },
        "step": {
            "images": train.batch_size,
            "answers": rollout.num_rollouts,
            "answer_tokens": rollout.max_tokens,
            "prompt_tokens": plan.sizes.prompt_tokens,
            "image_tokens": plan.sizes.image_tokens,
            "mini_batches": train.mini_batches,
            "micro_batches": train.micro_batches,
            "rollout_chunks": cost.chunks(plan),
        },
        "per_chip": {
            "parameters": cost.shard_bytes(plan.run.base) + cost.shard_bytes(plan.state.lora),
            "optimizer": cost.shard_bytes(plan.state.opt_state),
            "kv_cache": cost.cache_bytes(plan),
        },
        "notes": list(plan.notes),
        "fits": None
        if any(each.fits is None for each in found)
        else all(each.fits for each in found),
        "programs": [each.record() | {"advice": list(advice(each))} for each in found],
    }


def bounds(plan: Abstract, chip: Chip) -> str:
    """Says what limits each part of a step, a line for each; exchanges are not among it."""
    lines = []
    for name in ("rollout", "update"):
        for phase in cost.phases(plan, name):
            limits = f"products {phase.flops / chip.flops:.1f} s, "
            limits += f"memory {phase.bytes / chip.memory_rate:.1f} s"
            if phase.name == "decode":
                reads = cost.decode_reads(plan).items()
                parts = (f"{what} {size / chip.memory_rate:.1f} s" for what, size in reads)
                limits += f" ({', '.join(parts)})"
            lines.append(f"{phase.name:8} at least {phase.seconds(chip):.1f} s: {limits}")
    lines.append(
        f"KV cache {_size(cost.cache_bytes(plan))} a chip, sampled in {cost.chunks(plan)} parts"
    )
    return "\n".join(lines)


def text(found: Mapping[str, Any]) -> str:
    """A record as a person reads it."""
    return "\n".join([*_head(found), *(line for p in found["programs"] for line in _program(p))])


def _head(found: Mapping[str, Any]) -> Iterator[str]:
    model, step, chip = found["model"], found["step"], found["per_chip"]
    mesh = " x ".join(f"{name} {size}" for name, size in found["mesh"].items())
    yield f"{found['topology']}: {found['chips']} chips, mesh {mesh}, jax {found['jax']}"
    yield (
        f"policy: {model['parameters'] / 1e9:.2f}e9 frozen ({model['base_weights']}), "
        f"{model['adapters'] / 1e6:.1f}e6 in adapters"
    )
    yield (
        f"step: {step['images']} images x {step['answers']} answers of up to "
        f"{step['answer_tokens']} tokens, prompts of {step['prompt_tokens']} tokens "
        f"({step['image_tokens']} of them image); sampled in {step['rollout_chunks']} parts, "
        f"learned from in {step['mini_batches']} x {step['micro_batches']}"
    )
    yield (
        f"on each chip: parameters {_size(chip['parameters'])}, optimizer "
        f"{_size(chip['optimizer'])}, KV cache {_size(chip['kv_cache'])}"
    )
    yield from (f"note: {note}" for note in found["notes"])
    for setting in found.get("search", ()):
        yield f"searched: {setting['changes']}: {setting['outcome']}"
    fits = {None: "no limit is known", True: "everything fits", False: "DOES NOT FIT"}
    yield f"=> {fits[found['fits']]}"


def _program(p: Mapping[str, Any]) -> Iterator[str]:
    yield ""
    capacity = p["capacity_bytes"]
    limit = f" of {_size(capacity)}" if capacity else ""
    verdict = {None: "", True: "fits", False: "DOES NOT FIT"}[p["fits"]]
    at_least = "at least " if p["error"] else ""
    yield f"{p['name']}: {at_least}{_size(p['per_chip_bytes'])}{limit} a chip  {verdict}"
    parts = ", ".join(f"{name} {_size(size)}" for name, size in p["contributors"].items() if size)
    yield f"  made of: {parts}"
    yield f"  FLOPs {p['flops']:.3g}, bytes moved {p['bytes_accessed']:.3g} a chip"
    if p["estimated_seconds"] is not None:
        bounds = ", ".join(f"{name} {value:.1f} s" for name, value in p["bounds"].items())
        yield f"  takes at least {p['estimated_seconds']:.1f} s ({bounds})"
    if p["open_loops"]:
        yield f"  {p['open_loops']} loops stop when answers end; counted at full length"
    total = sum(c["total_bytes"] for c in p["collectives"])
    if total:
        yield f"  collectives: {total / _GIB:.1f} GiB a chip, the largest of them"
    for c in p["collectives"][:_SHOWN]:
        yield (
            f"    {c['kind']:18} {c['count']:>9,} x {_size(c['bytes_each']):>10}"
            f"  {_short(c['source'])}"
        )
    if p["error"]:
        yield f"  the compiler said: {p['error'].splitlines()[0]}"
    if p["fits"] is False:
        for line in p["advice"]:
            yield f"  {line['what']} ({_size(line['bytes'])}): {line['keys']}"


def _short(source: str, length: int = 60) -> str:
    """The end of an operation's name, which says more than its beginning."""
    return source if len(source) <= length else "..." + source[3 - length :]


def _size(count: float) -> str:
    for unit, size in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if count >= size:
            return f"{count / size:.2f} {unit}"
    return f"{count:.0f} B"
