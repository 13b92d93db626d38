"""Writes many names as few: names that begin or end alike become one with alternatives."""

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence

from speciarl_jax.verifiers.label_tree import schema

# A word, with the alternatives that are in it or that it consists of.
_UNIT = re.compile(r"(?:\[[^\[\]]*\]|[^\s\[\]])+")


def joined(names: Sequence[str]) -> list[str]:
    """Names that stand for the same names as these, as few as simple means make them.

    Args:
      names: names, with or without alternatives in brackets.
    """
    # "M3 coupe", "2012 M3 coupe" -> "[|2012] M3 coupe"; twice, as a name can be met at both ends.
    for _ in range(2):
        names = _grouped(names, _rests)
    return _grouped(names, _ends)


def _grouped(names: Sequence[str], shared: Callable) -> list[str]:
    """Joins names that share a part, each with the part that most names share."""
    parts = {name: shared(name) for name in names}
    often = Counter(part for all_parts in parts.values() for part in all_parts)
    groups = defaultdict(dict)
    for name, found in parts.items():
        part = max(found, key=lambda one: (often[one], len(one[1])), default=(0, name))
        groups[part][name] = found.get(part, "")
    written = []
    for (side, part), others in groups.items():
        short = {n: o for n, o in others.items() if len(_choices([o])) < len(n) + len(part)}
        written += [name for name in others if name not in short or len(short) == 1]
        if len(short) > 1:
            choices = f"[{_choices(short.values())}]"
            written.append(f"{choices} {part}" if side else f"{part} {choices}")
    return written


def _choices(names: Iterable[str]) -> str:
    return "|".join(dict.fromkeys(one for name in names for one in schema.expand(name)))


def _rests(name: str) -> dict[tuple[int, str], str]:
    """What is left without the first unit (1) or the last (0), or with both, and that unit."""
    units = _UNIT.findall(name)
    found = {(1, name): "", (0, name): ""}
    if len(units) > 1:
        found[1, " ".join(units[1:])] = units[0]
        found[0, " ".join(units[:-1])] = units[-1]
    return found


def _ends(name: str) -> dict[tuple[int, str], str]:
    """The first unit (0) and the last (1) of a name of several, and what is left without it."""
    units = _UNIT.findall(name)
    if len(units) < 2:
        return {}
    return {(0, units[0]): " ".join(units[1:]), (1, units[-1]): " ".join(units[:-1])}
