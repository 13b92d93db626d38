"""Compares groups of folders: the seeds of each group are aggregated, as in a study."""

import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath

from speciarl_jax.evaluation import comparisons, metrics, seeds
from speciarl_jax.evaluation.predictions import SAMPLES, Part
from speciarl_jax.tools.study import aggregate

# Folder -> its parts and their provenance.
Folders = Mapping[epath.Path, tuple[Mapping[Part, Any], Mapping[str, Any]]]
_SEED = re.compile(r"seed[_-]?\d+")


def find(arguments: Sequence[str]) -> dict[str, list[epath.Path]]:
    """Groups the folders of a command line.

    Args:
      arguments: folders, of which those called seed_0, seed_1, ... in one folder are a group, or
        NAME=PATTERN for all folders that fit a pattern such as runs/binary_*.

    Returns:
      Name -> folders, the first group first.

    Raises:
      ValueError: no folder fits a pattern.
    """
    found: dict[str, list[epath.Path]] = {}
    for argument in arguments:
        name, equals, pattern = argument.partition("=")
        folder = epath.Path(argument)
        if equals and not folder.exists():
            start = pathlib.Path(pattern)
            root = start.anchor or "."
            fits = sorted(pathlib.Path(root).glob(str(start.relative_to(start.anchor))))
            if not fits:
                raise ValueError(f"{argument}: no folder fits {pattern}")
            found.setdefault(name, []).extend(epath.Path(one) for one in fits if one.is_dir())
        elif _SEED.fullmatch(folder.name):
            found.setdefault(str(folder.parent), []).append(folder)
        else:
            found.setdefault(str(folder), []).append(folder)
    return found


def seed_numbers(folders: Sequence[epath.Path]) -> list[int]:
    """Returns the numbers at the ends of folders' names, or their positions where these are none.

    The same numbers in two groups are the same seeds.
    """
    numbers = [re.search(r"(\d+)$", folder.name) for folder in folders]
    found = [int(number.group(1)) for number in numbers if number]
    is_clear = len(set(found)) == len(folders)
    return found if is_clear else list(range(len(folders)))


def compare(
    groups: Mapping[str, Sequence[epath.Path]], runs: Folders, weights: Mapping[str, float]
) -> dict[str, Any]:
    """Computes what `aggregate.of_study` does, of groups of folders.

    The first policy of the first group that is no base is the reference. A policy without adapters
    has no seeds, and the same one in several groups is one row.

    Args:
      groups: name -> folders (`find`), each one a seed.
      runs: what is in all of them.
      weights: as for `metrics.score`.

    Raises:
      ValueError: two folders have other images, or another verifier or labels, under one name of a
        data set; or a policy is in some folders of a group only.
    """
    methods: dict[str, dict[tuple[str, int | None], seeds.Verdicts]] = {}
    judged: dict[str, tuple[str, Any]] = {}
    bases: dict[Any, str] = {}
    for group, folders in groups.items():
        numbers = seed_numbers(folders)
        _check_alike(group, folders, runs)
        for number, folder in zip(numbers, folders, strict=True):
            parts, provenance = runs[folder]
            for part, lines in parts.items():
                known = provenance.get(str(part), {})
                _check_judged(judged, folder, part, known)
                name, seed = _name(group, part, known, bases), number
                if known.get("policy", {}).get("adapters") == "none":
                    seed = None
                if part.decoding == SAMPLES:
                    name = aggregate.best_of(name, len(lines[0]["responses"]))
                methods.setdefault(part.data, {})[name, seed] = seeds.verdicts_of(lines)
    names = list(dict.fromkeys(name for found in methods.values() for name, _ in found))
    base = next((name for name in names if name in bases.values()), None)
    trained = [name for name in names if name not in bases.values()]
    named = {
        "base": base,
        "reference": (trained or names)[0],
        "best": next((n for n in names if base and n.startswith(f"{base}, best of ")), None),
    }
    return {
        **named,
        "method": aggregate.METHOD,
        "weights": metrics.named_weights(weights),
        "groups": {name: [str(folder) for folder in folders] for name, folders in groups.items()},
        "sets": {
            data: aggregate.of_methods(_runs(found), weights, {}, **named)
            for data, found in methods.items()
        },
        "search": {},
    }


def _runs(verdicts: Mapping[tuple[str, int | None], seeds.Verdicts]) -> dict[str, seeds.Runs]:
    images, category = seeds.aligned(verdicts)
    return aggregate.grouped(category) if images else {}


def _name(group: str, part: Part, known: Mapping[str, Any], bases: dict[Any, str]) -> str:
    """Names a policy by its group; of a base the first group that has it."""
    prompt = "" if part.prompt == "base" else f", {part.prompt}"
    policy = known.get("policy", {})
    if policy.get("adapters") != "none":
        return f"{group}, {part.policy}{prompt}"
    key = (repr(sorted(policy.items(), key=str)), known.get("prompt"), part.prompt)
    taken = {name for other, name in bases.items() if other != key}
    name = f"{part.policy}{prompt}"
    return bases.setdefault(key, name if name not in taken else f"{group}, {name}")


def _check_alike(group: str, folders: Sequence[epath.Path], runs: Folders) -> None:
    first, *others = folders
    for other in others:
        if lacking := set(runs[first][0]) ^ set(runs[other][0]):
            raise ValueError(
                f"{group}: only one of {first} and {other} has answers of "
                f"{sorted(map(str, lacking))}; seeds of one method need the same evaluations, so "
                "evaluate the other, leave it out, or choose with --policies"
            )


def _check_judged(
    judged: dict[str, tuple[str, Any]], folder: epath.Path, part: Part, known: Mapping[str, Any]
) -> None:
    keys = (*comparisons.IMAGES, *comparisons.VERDICTS)
    other, before = judged.setdefault(part.data, (str(folder), known))
    for key, (a, b) in comparisons.unlike(before, known, keys).items():
        raise ValueError(
            f"{other} and {folder} differ in the images or verdicts of {part.data!r}: {key} is "
            f"{a!r} and {b!r}; evaluate both on the same, or leave one out"
        )
