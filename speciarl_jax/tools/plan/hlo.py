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
_NAME = re.compile(r"%([\w.\-]+)")
_CONSTANT = re.compile(r"constant\((\d+)\)")
_OP_NAME = re.compile(r'op_name="([^"]*)"')


@dataclasses.dataclass(frozen=True)
class Collective:
    """Exchanges of one kind and size."""

    kind: str  # one of `KINDS`
    # Of the larger side of one exchange, on one chip: all its operands, or all its results.
    bytes_each: int
    count: int
    source: str  # name of the operation in the program it came from

    @property
    def total_bytes(self) -> int:
        return self.bytes_each * self.count


@dataclasses.dataclass(frozen=True)
class _Instruction:
    """`text` is what follows the `=`: the type of the result, the operation, its operands."""

    name: str
    operation: str
    result: str
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
    results = {
        name: {each.name: each.result for each in body} for name, body in computations.items()
    }
    turns: collections.Counter[tuple[str, int, str]] = collections.Counter()
    unknown: set[str] = set()

    def visit(name: str, times: int) -> None:
        given = False
        for each in computations.get(name, ()):
            kind = _kind(each.operation)
            if kind:
                source = _OP_NAME.search(each.text)
                key = (kind, _exchanged(each, results[name]), source.group(1) if source else "")
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
                    result=rest[: operation.start(1)].strip() if operation else "",
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


def _exchanged(each: _Instruction, results: dict[str, str]) -> int:
    """Bytes of the larger side of a collective, all its arrays together.

    Args:
      results: types of the instructions of its computation, by name.
    """
    members = _members(each.result)
    # What begins an exchange has the type (operands, results, ...); an all-reduce only if wrapped.
    both = each.operation.endswith("-start") and len(members) > 1
    if both and (each.operation != "all-reduce-start" or members[0].startswith("(")):
        return max(_bytes(side) for side in members[:2])
    operands = each.text[each.text.index(each.operation + "(") + len(each.operation) :]
    names = [_NAME.search(operand) for operand in _members(operands)]
    return max(
        _bytes(each.result), sum(_bytes(results.get(name.group(1), "")) for name in names if name)
    )


def _members(text: str) -> list[str]:
    """Of the list in parentheses that a text begins with; the text alone if it begins with none."""
    if not text.startswith("("):
        return [text]
    members, depth, begun = [], 0, 1
    for at, letter in enumerate(text):
        depth += (letter in "([{") - (letter in ")]}")
        if depth == 0 or (depth == 1 and letter == ","):
            members.append(text[begun:at].strip())
            begun = at + 1
        if depth == 0:
            break
    return members


def _bytes(text: str) -> int:
    """Of all arrays of a type."""
    total = 0
    for kind, sizes in _ARRAY.findall(text):
        bits = 8 if kind == "pred" else int(re.search(r"\d+", kind)[0])
        total += math.prod(int(size) for size in sizes.split(",") if size) * bits // 8
    return total
