"""Compiles regular expressions over bytes to tables, for scans on a device.

The expressions are those of `re` with literals, "[...]" and "[^...]", groups, "|", "?", "*" and
"+", so that `re.fullmatch` on the host and the table accept the same bytes. There are no escapes,
and no other special characters.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

_SPECIAL = frozenset("()[]|?*+.\\{}^$")


class Dfa(NamedTuple):
    """A deterministic automaton; state 0 is dead, state 1 is the first.

    Attributes:
      class_256: uint8 [256], the class of each byte.
      next_SK: int32 [states, classes], the state after a byte of a class.
      label_S: int32 [states], 0 where the bytes so far are not accepted, otherwise the number of
        the first expression that accepts them, counted from 1.
    """

    class_256: np.ndarray
    next_SK: np.ndarray
    label_S: np.ndarray

    def labels(self, text: bytes) -> list[int]:
        """Returns the label after each of the first 0 to len(text) bytes."""
        state, found = 1, [int(self.label_S[1])]
        for byte in text:
            state = self.next_SK[state, self.class_256[byte]]
            found.append(int(self.label_S[state]))
        return found


class _Nfa:
    """Thompson's construction: `empty` and `edges` of states; a fragment is (first, last)."""

    def __init__(self):
        self.empty: list[list[int]] = []
        self.edges: list[tuple[frozenset[int], int] | None] = []

    def state(self) -> int:
        self.empty.append([])
        self.edges.append(None)
        return len(self.empty) - 1

    def byte(self, values: Iterable[int]) -> tuple[int, int]:
        first, last = self.state(), self.state()
        self.edges[first] = (frozenset(values), last)
        return first, last

    def parse(self, text: str) -> tuple[int, int]:
        """Adds an expression.

        Raises:
          ValueError: a character that the syntax lacks, or a bracket without its partner.
        """
        fragment, at = self._either(text, 0)
        if at < len(text):
            raise ValueError(f"expression {text!r}: unexpected {text[at]!r} at {at}")
        return fragment

    def _either(self, text: str, at: int) -> tuple[tuple[int, int], int]:
        first, last = self.state(), self.state()
        while True:
            end, here = self.state(), None
            self.empty[first].append(end)
            while at < len(text) and text[at] not in "|)":
                here, at = self._repeated(text, at)
                self.empty[end].append(here[0])
                end = here[1]
            self.empty[end].append(last)
            if at == len(text) or text[at] == ")":
                return (first, last), at
            at += 1

    def _repeated(self, text: str, at: int) -> tuple[tuple[int, int], int]:
        if text[at] == "(":
            inner, at = self._either(text, at + 1)
            if at == len(text):
                raise ValueError(f"expression {text!r}: a ')' is missing")
        elif text[at] == "[":
            close = text.index("]", at)
            inner, at = self.byte(_bytes_of(text[at + 1 : close])), close
        elif text[at] in _SPECIAL or not text[at].isascii():
            raise ValueError(f"expression {text!r}: unexpected {text[at]!r} at {at}")
        else:
            inner = self.byte([ord(text[at])])
        at += 1
        first, last = self.state(), self.state()
        self.empty[first].append(inner[0])
        self.empty[inner[1]].append(last)
        if at < len(text) and text[at] in "?*+":
            if text[at] in "?*":
                self.empty[first].append(last)
            if text[at] in "*+":
                self.empty[inner[1]].append(inner[0])
            at += 1
        return (first, last), at

    def closure(self, states: Iterable[int]) -> frozenset[int]:
        """Returns the states with edges, and the last ones, that need no further byte."""
        seen, left = set(), list(states)
        while left:
            state = left.pop()
            if state not in seen:
                seen.add(state)
                left += self.empty[state]
        return frozenset(s for s in seen if self.edges[s] is not None or not self.empty[s])


def _bytes_of(inside: str) -> set[int]:
    """Returns the bytes of "[inside]"; "x-y" is a range."""
    negated, found, at = inside.startswith("^"), set(), 0
    inside = inside.removeprefix("^")
    while at < len(inside):
        stop = inside[at + 2] if inside[at + 1 : at + 2] == "-" and at + 2 < len(inside) else None
        found |= set(range(ord(inside[at]), ord(stop or inside[at]) + 1))
        at += 3 if stop else 1
    return set(range(256)) - found if negated else found


def compile(*expressions: str) -> Dfa:
    """Compiles expressions to one automaton by subset construction, and merges equal states.

    Raises:
      ValueError: an expression has a syntax error.
    """
    nfa = _Nfa()
    fragments = [nfa.parse(expression) for expression in expressions]
    class_256, members = _byte_classes([edge[0] for edge in nfa.edges if edge])
    label_of = {last: number for number, (_, last) in enumerate(fragments, 1)}
    # State -> classes of the bytes of its edge, and what is reached by it.
    edges = {
        state: ([k for k, byte in enumerate(members) if byte in edge[0]], nfa.closure([edge[1]]))
        for state, edge in enumerate(nfa.edges)
        if edge
    }
    start = nfa.closure(first for first, _ in fragments)
    number, order, rows = {frozenset(): 0, start: 1}, [frozenset(), start], []
    for subset in order:
        row = [set() for _ in members]
        for state in subset & edges.keys():
            classes, reached = edges[state]
            for k in classes:
                row[k] |= reached
        for found in map(frozenset, row):
            if found not in number:
                number[found] = len(order)
                order.append(found)
        rows.append([number[frozenset(found)] for found in row])
    labels = [min((label_of[s] for s in subset if s in label_of), default=0) for subset in order]
    return _merged(Dfa(class_256, np.array(rows, np.int32), np.array(labels, np.int32)))


def _byte_classes(sets: Sequence[frozenset[int]]) -> tuple[np.ndarray, list[int]]:
    """Returns the class of each byte, and one byte of each class."""
    distinct = list(dict.fromkeys(sets))
    signatures = {b: tuple(b in values for values in distinct) for b in range(256)}
    numbers = {signature: k for k, signature in enumerate(dict.fromkeys(signatures.values()))}
    members = {numbers[signature]: byte for byte, signature in signatures.items()}
    class_256 = np.array([numbers[signatures[b]] for b in range(256)], np.uint8)
    return class_256, [members[k] for k in range(len(numbers))]


def _merged(dfa: Dfa) -> Dfa:
    """Merges states that accept the same bytes from there on (Moore's algorithm)."""
    block_S, count, found = dfa.label_S, 0, len(np.unique(dfa.label_S))
    while found > count:
        rows = np.concatenate([block_S[:, None], block_S[dfa.next_SK]], axis=1)
        number, count = {}, found
        block_S = np.array(
            [number.setdefault(row.tobytes(), len(number)) for row in rows], np.int32
        )
        found = len(number)
    _, one_of = np.unique(block_S, return_index=True)
    # The dead state and the first keep their places.
    order = [block_S[0], *([block_S[1]] if block_S[1] != block_S[0] else [])]
    order += [b for b in range(count) if b not in order]
    new_of = np.empty(count, np.int32)
    new_of[order] = np.arange(count)
    chosen = one_of[order]
    return Dfa(dfa.class_256, new_of[block_S[dfa.next_SK[chosen]]], dfa.label_S[chosen])
