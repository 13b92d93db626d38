"""Looks for a mesh and chunk sizes that fit: ranks them by arithmetic, then compiles a few."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import ml_collections

from speciarl_jax.experiment import validate_config
from speciarl_jax.tools.plan import chips, cost, programs

# Share of a chip's memory that is left to what the arithmetic does not see.
_SPARE = 0.25


def search(
    config: ml_collections.ConfigDict,
    model: programs.PolicyConfig,
    sizes: programs.Sizes,
    chip: chips.Chip,
    devices: Any,
    compile_: Callable[[ml_collections.ConfigDict], Mapping[str, Any]],
    most: int,
) -> Mapping[str, Any]:
    """The first setting that fits, in the order of the time that our counts promise.

    Args:
      compile_: configuration -> record of its plan (`report.record`).
      most: settings that are compiled.

    Returns:
      The record of the first setting that fits, or of the last that was tried, with `search`: what
      was tried and what came of it.

    Raises:
      ValueError: no setting divides the batch and the model.
    """
    ranked = sorted(_candidates(config, model, sizes, chip, devices), key=lambda found: found[0])
    if not ranked:
        raise ValueError(
            f"no mesh of {len(devices)} devices fits config.train.batch_size "
            f"{config.train.batch_size} and the memory of a chip; use more or larger chips, or "
            "config.model.base_weights = 'int8'"
        )
    tried, record = [], {}
    queue = [changes for _, changes in ranked]
    while queue and len(tried) < most:
        changes = queue.pop(0)
        record = dict(compile_(changed(config, changes)))
        over = [p["name"] for p in record["programs"] if not p["fits"]]
        outcome = f"{' and '.join(over)} over the limit" if over else "fits"
        tried.append({"changes": changes, "outcome": outcome})
        if not over:
            break
        # The same mesh in smaller parts comes before another mesh.
        smaller = _smaller(changes, over, config)
        if smaller:
            queue.insert(0, smaller)
    return record | {"search": tried}


def changed(
    config: ml_collections.ConfigDict, changes: Mapping[str, int]
) -> ml_collections.ConfigDict:
    """A copy with some keys, "section.key", set anew."""
    copy = config.copy_and_resolve_references()
    for name, value in changes.items():
        section, key = name.split(".")
        copy[section][key] = value
    return copy.lock()


def _candidates(config, model, sizes, chip, devices) -> Iterator[tuple[float, dict[str, int]]]:
    """(seconds that are promised, changes) of settings whose weights and caches leave room."""
    count = len(devices)
    for tensor in (t for t in range(1, count + 1) if count % t == 0):
        for fsdp in (f for f in range(1, count // tensor + 1) if count // tensor % f == 0):
            mesh = {"mesh.data": count // tensor // fsdp, "mesh.fsdp": fsdp, "mesh.tensor": tensor}
            if model.text.num_kv_heads % tensor:
                continue
            sampled, parts = validate_config.sampled_images(config), count // tensor
            if sampled % parts:
                continue
            largest = sampled
            while largest >= parts and largest % parts == 0:
                chunk = {"rollout.max_images_per_chunk": 0 if largest == sampled else largest}
                found = _promise(config, model, sizes, chip, devices, mesh | chunk)
                if found is not None:
                    yield found, mesh | chunk | _micro(config, parts)
                    break
                largest //= 2


def _promise(config, model, sizes, chip, devices, changes) -> float | None:
    """Seconds of a setting by our counts; None if it is refused or leaves no room."""
    try:
        plan = programs.abstract(changed(config, changes), model, sizes, devices)
        cost.chunks(plan)
    except ValueError:
        return None
    held = cost.shard_bytes((plan.run.base, plan.state)) + cost.cache_bytes(plan)
    if held > (1 - _SPARE) * chip.capacity:
        return None
    return sum(
        phase.seconds(chip) for name in ("rollout", "update") for phase in cost.phases(plan, name)
    )


def _micro(config, parts: int) -> dict[str, int]:
    """The fewest micro-batches that the configuration allows and the mesh divides."""
    mini = config.train.batch_size // config.train.mini_batches
    fits = [m for m in range(config.train.micro_batches, mini + 1) if not mini % (m * parts)]
    return {"train.micro_batches": fits[0]} if fits else {}


def _smaller(changes, over, config) -> dict[str, int] | None:
    """The same setting with smaller parts of what is over the limit; None at one image a chip."""
    parts = changes["mesh.data"] * changes["mesh.fsdp"]
    found = dict(changes)
    if {"rollout", "step"} & set(over):
        now = changes["rollout.max_images_per_chunk"] or config.train.batch_size
        if now // 2 < parts or now // 2 % parts:
            return None
        found["rollout.max_images_per_chunk"] = now // 2
    if {"update", "step"} & set(over):
        mini = config.train.batch_size // config.train.mini_batches
        now = changes.get("train.micro_batches", config.train.micro_batches)
        if mini % (now * 2 * parts):
            return None
        found["train.micro_batches"] = now * 2
    return found if found != changes else None
