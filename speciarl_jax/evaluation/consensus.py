"""Chooses one name for an image from several answers: as specific as the answers agree on.

An answer supports the name that it gives and, with a label tree, all names above it: "eagle" also
supports "bird of prey", "bird" and "animal". The support of a name is the share of all answers that
support it; answers that decline or cannot be read support nothing. Going down the tree along the
best-supported names, the last name whose support reaches the confidence is chosen. If the first
does not reach it, none is. A name outside of the tree has no names above it. It is supported by the
answers that equal it, apart from case, punctuation and leading articles (`parsing.key`).
"""

import collections
import dataclasses
import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from speciarl_jax.verifiers import abstention, parsing
from speciarl_jax.verifiers.label_tree import schema, word_forms


def name_of(response: str) -> str | None:
    """Finds the name in a response, in the form in which names are compared (`parsing.key`).

    Returns:
      The name; None if no answer can be read, "" if the answer declines.
    """
    content = parsing.extract(response)
    key = parsing.key(content) if content else b""
    if not key:
        return None
    return "" if abstention.text_abstains(content) else key.decode("utf-8", "surrogatepass")


def most_frequent(names: Sequence[str | None]) -> tuple[str | None, float]:
    """Finds the most frequent of the names that responses give (`name_of`), and its share.

    Declining counts as a name; of equally frequent names the first of the alphabet counts. Returns
    None and 0 if no response can be read.
    """
    counts = collections.Counter(name for name in names if name is not None)
    if not counts:
        return None, 0.0
    name = min(counts, key=lambda name: (-counts[name], name))
    return name, counts[name] / len(names)


@dataclasses.dataclass(frozen=True)
class Choice:
    """One name for an image."""

    name: str | None  # None if no name has the confidence
    agreement: float  # support of `name`, or of the most general name of the path if `name` is None
    # (name, support) along the best-supported names, the most specific first.
    path: list[tuple[str, float]]
    # Name -> how many responses gave it; the keys "" and None count responses that decline and that
    # cannot be read.
    answers: Mapping[str | None, int]


class NameTree:
    """The names above each name of a label tree.

    A class is above another if it has all leaves of the other, and more, in whatever order a leaf
    lists its classes. If two classes have the same leaves, the order in the first leaf decides.
    """

    def __init__(self, tree: Mapping[str, Any] | None = None, source: str = "label tree"):
        """Indexes the names.

        Args:
          tree: content of a label tree (`label_tree.schema`); None for no tree.
          source: what errors call the tree.

        Raises:
          ValueError: the tree is malformed.
        """
        # Key of a name -> nodes it may mean. The key of a node's first name identifies the node.
        self._means: dict[str, set[str]] = {}
        self._spoken: dict[str, str] = {}
        self._above: dict[str, set[str]] = {}
        if tree is None:
            return
        schema.check(tree, source)
        forms: list[tuple[str, str]] = []
        members: dict[str, dict[str, None]] = {}  # in the order of the file
        ways = [way for leaf in _leaves(tree) for way in _ways(leaf, tree["groups"])]
        told = set()
        for way in ways:
            for node, aliases in way:
                members.setdefault(node, {})[way[0][0]] = None
                if (node, *aliases) in told:
                    continue
                told.add((node, *aliases))
                self._spoken.setdefault(node, aliases[0])
                for alias in aliases:
                    self._means.setdefault(_key(alias), set()).add(node)
                    forms += [(form, node) for form in _forms(alias)]
        sets = {node: set(inside) for node, inside in members.items()}
        is_above = functools.cache(lambda up, node: sets[node] < sets[up])
        told.clear()
        for way in ways:
            nodes = [node for node, _ in way]
            # The way from a leaf on is the same for all its hyponyms that are nothing else.
            alone = len(sets[nodes[0]]) == 1 and tuple(nodes[1:]) in told
            told.add(tuple(nodes))
            for i, node in enumerate(nodes[:1] if alone else nodes):
                above = self._above.setdefault(node, set())
                above |= {up for up in nodes if up not in above and is_above(up, node)}
                if way[0][0] == next(iter(members[node])):
                    above |= {up for up in nodes[i + 1 :] if sets[up] == sets[node] and up != node}
        exact = set(self._means)
        for form, node in forms:
            if form not in exact:
                self._means.setdefault(form, set()).add(node)

    def implied(self, key: str) -> set[str]:
        """Returns the names that an answer supports: those it may mean, and all above them."""
        meant = self._means.get(key, {key})
        return meant.union(*(self.above(name) for name in meant))

    def above(self, name: str) -> set[str]:
        """Returns the names above a name."""
        return self._above.get(name, set())

    def spoken(self, name: str) -> str:
        """Returns a name as an answer would give it, without the group that tells senses apart."""
        return self._spoken.get(name, name)


def choose(responses: Sequence[str], tree: NameTree, confidence: float) -> Choice:
    """Chooses one name for an image from several responses, by the rule of this module.

    Args:
      responses: at least one; whole responses, tags included.
      confidence: the support that a name must have, in (0, 1].

    Raises:
      ValueError: there is no response, or the confidence is outside of (0, 1].
    """
    if not responses or not 0 < confidence <= 1:
        raise ValueError(
            f"a name is chosen from at least one answer (got {len(responses)}), with a confidence "
            f"above 0 and not above 1 (got {confidence})"
        )
    path = path_of(responses, tree)
    name, agreement = safest(path, confidence) or (None, path[-1][1] if path else 0.0)
    return Choice(name, agreement, path, dict(collections.Counter(map(name_of, responses))))


def path_of(responses: Sequence[str], tree: NameTree) -> list[tuple[str, float]]:
    """Returns `Choice.path` of responses, at least one."""
    answers = collections.Counter(filter(None, map(name_of, responses)))
    way = _way_down(answers, tree)
    return [(name, count / len(responses)) for name, count in reversed(way)]


def safest(path: Sequence[tuple[str, float]], confidence: float) -> tuple[str, float] | None:
    """Returns the most specific step of a path whose support reaches a confidence, or None."""
    return next((step for step in path if step[1] >= confidence - 1e-9), None)


def _way_down(answers: Mapping[str, int], tree: NameTree) -> list[tuple[str, int]]:
    """Goes from the best-supported most general name to the best-supported name below, and so on.

    In each step only answers count that support all names so far. So a word of two senses supports
    both at first, and one in the end.

    Returns:
      (name, number of answers), the most general first; the numbers never rise.
    """
    way: list[tuple[str, int]] = []
    implied = {key: tree.implied(key) for key in answers}
    left = set().union(*implied.values())
    while left:
        counts: collections.Counter[str] = collections.Counter()
        for key, names in implied.items():
            for name in names & left:
                counts[name] += answers[key]
        highest = [name for name in left if not tree.above(name) & left]
        # Among equally supported names the alphabet decides, so that runs agree.
        chosen = min(highest, key=lambda name: (-counts[name], name))
        way.append((chosen, counts[chosen]))
        implied = {key: names for key, names in implied.items() if chosen in names}
        left = {
            name
            for names in implied.values()
            for name in names & left
            if chosen in tree.above(name)
        }
    return way


def _leaves(tree: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yields leaves with their nodes: the name, and also the group if leaves share the name."""
    groups: dict[str, set[str]] = {}
    for leaf in tree["leaves"].values():
        groups.setdefault(_key(leaf["name"]), set()).add(leaf["generic"])
    for leaf in tree["leaves"].values():
        name = _key(leaf["name"])
        yield (name if len(groups[name]) == 1 else f"{name} ({leaf['generic']})"), leaf


def _ways(
    called: tuple[str, Mapping[str, Any]], groups: Mapping[str, list[str]]
) -> Iterator[list[tuple[str, list[str]]]]:
    """Yields the way up from a leaf, and from each of its hyponyms: nodes with their names."""
    node, leaf = called
    way = [(node, _written_out([leaf["name"], *leaf.get("synonyms", [])]))]
    classes = (*leaf.get("ancestors", []), *leaf.get("broader", []), groups[leaf["generic"]])
    way += [(_key(aliases[0]), aliases) for aliases in map(_written_out, classes)]
    yield way
    for hyponym in _written_out(leaf.get("hyponyms", [])):
        yield [(_key(hyponym), [hyponym]), *way]


def _written_out(names: Sequence[str]) -> list[str]:
    """Returns the names with their alternatives in brackets as names of their own."""
    return [one for name in names for one in schema.expand(name)]


def _key(name: str) -> str:
    return parsing.key(name).decode("utf-8", "surrogatepass")


def _forms(name: str) -> set[str]:
    """Returns the keys of other spellings and plurals."""
    keys = {_key(spelt) for spelt in word_forms.spellings(name)}
    return (keys | {form for key in {_key(name), *keys} for form in word_forms.plurals(key)}) - {""}
