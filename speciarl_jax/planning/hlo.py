"""Collectives of a compiled program, from its text, multiplied by the turns of its loops."""

import collections
import dataclasses
import math
import re

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")

_HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{\s*$")
_INSTRUCTION = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = (.*)$")
_OPERATION = re.compile(r"(?:^|[\s)}])([a-z][\w\-]*)\(")
_CALLS = re.compile(r"(?:calls|to_apply|body|condition)=%?([\w.\-]+)")
_BRANCHES = re.compile(r"(?:branch_computations=\{([^}]*)\})")
_EITHER = re.compile(r"(?:true|false)_computation=%?([\w.\-]+)")
_TRIPS = re.compile(r'known_trip_count":\{"n":"(\d+)"')
_ARRAY = re.compile(r"\b(pred|[suf]\d+|bf16|f8\w*|c64|c128)\[([\d,]*)\]")
_CONSTANT = re.compile(r"constant\((\d+)\)")
_OP_NAME = re.compile(r'op_name="([^"]*)"')


@dataclasses.dataclass(frozen=True)
class Collective:
    """Exchanges of one kind and size.

    Attributes:
      kind: one of `KINDS`.
      bytes_each: of the larger side of one exchange, on one chip.
      count: how often it runs.
      source: name of the operation in the program it came from.
    """

    kind: str
    bytes_each: int
    count: int
    source: str

    @property
    def total_bytes(self) -> int:
        return self.bytes_each * self.count


@dataclasses.dataclass(frozen=True)
class _Instruction:
    name: str
    operation: str
    text: str
    root: bool


def collectives(text: str, open_turns: int = 1) -> tuple[list[Collective], int]:
    """Collectives of a program, the largest totals first.

    Args:
      text: `compiled.as_text()`.
      open_turns: of a loop whose number of turns is not in the program (decoding, which stops when
        all answers have ended). Of several such loops that follow each other in a computation the
        first is given all the turns, and the others none: they are the first loop made narrower.

    Returns:
      The collectives, and how many loops had no number of turns.
    """
    computations, entry = _parse(text)
    turns: collections.Counter[tuple[str, int, str]] = collections.Counter()
    unknown: set[str] = set()

    def visit(name: str, times: int) -> None:
        given = False
        for each in computations.get(name, ()):
            kind = _kind(each.operation)
            if kind:
                source = _OP_NAME.search(each.text)
                key = (kind, _largest(each.text), source.group(1) if source else "")
                turns[key] += times
                continue
            here = times
            if each.operation == "while":
                trips = _trips(each.text, computations)
                if trips is None:
                    unknown.add(each.name)
                    trips, given = (0 if given else open_turns), True
                here = times * trips
            for called in _called(each.text):
                visit(called, here)

    visit(entry, 1)
    found = [Collective(k, size, n, source) for (k, size, source), n in turns.items() if n]
    return sorted(found, key=lambda c: -c.total_bytes), len(unknown)


def _parse(text: str) -> tuple[dict[str, list[_Instruction]], str]:
    computations: dict[str, list[_Instruction]] = {}
    entry, current = "", None
    for line in text.splitlines():
        header = _HEADER.match(line)
        if header:
            current = computations.setdefault(header.group(2), [])
            entry = header.group(2) if header.group(1) else entry
            continue
        found = _INSTRUCTION.match(line)
        if found and current is not None:
            rest = found.group(3)
            operation = _OPERATION.search(rest)
            current.append(
                _Instruction(
                    name=found.group(2),
                    operation=operation.group(1) if operation else "",
                    text=rest,
                    root=bool(found.group(1)),
                )
            )
    return computations, entry


def _kind(operation: str) -> str | None:
    """The kind of a collective; what only waits for one (`-done`) is none."""
    name = operation.removesuffix("-start")
    return name if name in KINDS else None


def _called(text: str) -> list[str]:
    names = _CALLS.findall(text) + _EITHER.findall(text)
    for branches in _BRANCHES.findall(text):
        names += [name.strip().lstrip("%") for name in branches.split(",")]
    return names


def _trips(text: str, computations: dict[str, list[_Instruction]]) -> int | None:
    """Turns of a loop: those that the compiler noted, or the bound that its counter is held to."""
    noted = _TRIPS.search(text)
    if noted:
        return int(noted.group(1))
    condition = re.search(r"condition=%?([\w.\-]+)", text)
    body = computations.get(condition.group(1), []) if condition else []
    roots = [each for each in body if each.root]
    if len(roots) != 1 or roots[0].operation != "compare" or "direction=LT" not in roots[0].text:
        return None
    bounds = [
        int(_CONSTANT.search(each.text).group(1))
        for each in body
        if each.operation == "constant" and _CONSTANT.search(each.text)
    ]
    return bounds[0] if len(bounds) == 1 else None


def _largest(text: str) -> int:
    """Bytes of the largest array that an instruction's text names before its attributes."""
    head = text.split(", channel_id=")[0].split(", replica_groups=")[0]
    return max([0, *(_bytes(kind, sizes) for kind, sizes in _ARRAY.findall(head))])


def _bytes(kind: str, sizes: str) -> int:
    width = re.search(r"\d+", kind)
    bits = 8 if kind == "pred" else int(width.group(0))
    return math.prod(int(size) for size in sizes.split(",") if size) * bits // 8
