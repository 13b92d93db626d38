"""Label trees in the format of `taxonomy_file`, from paths of labels or from WordNet's nouns."""

import csv
import os
import pathlib
from collections.abc import Iterable, Sequence
from typing import Any

from speciarl_jax.verifiers import abstention, parsing
from speciarl_jax.verifiers.label_tree import schema
from speciarl_jax.verifiers.label_tree.wordnet import Nouns, Synset

# Names of one node in a cell of a CSV file.
SEPARATOR = "|"
Node = tuple[str, ...]


def from_csv(path: str | os.PathLike, *, max_words: int) -> dict[str, Any]:
    """A tree from a CSV file of label paths; there is no header.

    A row goes from the group to the label, a node a cell; the names of a node stand between bars,
    the usual one first:

        animal|creature,bird,bird of prey|raptor,eagle
        animal|creature,bird,bird of prey|raptor,eagle,bald eagle

    Every row is a label. One whose path goes on in another row has that row's label as a hyponym.
    Nodes are told apart by their path. The id of a label is its name; where two share it, the
    names of the whole path.

    Args:
      path: of the file.
      max_words: of a name; a longer one is refused.

    Raises:
      ValueError: the file cannot be read, a row has fewer than two nodes, an empty node or a name
        without words, a path is repeated, or a node is named differently in two rows.
    """
    rows = list(_read_rows(path))
    groups: dict[str, list[str]] = {}
    spelt: dict[tuple[str, ...], Node] = {}
    paths: dict[tuple[str, ...], list[Node]] = {}
    for number, row in rows:
        keys = tuple(parsing.key(node[0]).decode() for node in row)
        for depth, node in enumerate(row, 1):
            # A node may be written out once and named briefly elsewhere.
            known = spelt.get(keys[:depth], node)
            if len(node) > 1 and len(known) > 1 and node != known:
                raise ValueError(
                    f"{path}, line {number}: the node {node[0]!r} has the names {list(node)} here "
                    f"and {list(known)} above; write the same"
                )
            spelt[keys[:depth]] = max(node, known, key=len)
        if keys in paths:
            raise ValueError(f"{path}, line {number}: this path stands above already; remove one")
        paths[keys] = row
    leaves, counts = {}, {}
    for keys in paths:
        counts[keys[-1]] = counts.get(keys[-1], 0) + 1
    for keys in paths:
        name, *synonyms = spelt[keys]
        group = spelt[keys[:1]]
        groups[group[0]] = list(group)
        leaf_id = name if counts[keys[-1]] == 1 else " / ".join(keys)
        below = [spelt[k] for k in spelt if len(k) > len(keys) and k[: len(keys)] == keys]
        leaves[leaf_id] = {
            "name": name,
            "synonyms": synonyms,
            "ancestors": [list(spelt[keys[:d]]) for d in range(len(keys) - 1, 1, -1)],
            "hyponyms": list(dict.fromkeys(n for node in below for n in node)),
            "generic": group[0],
        }
    return checked({"version": 1, "leaves": leaves, "groups": groups}, str(path), max_words)


def _read_rows(path: str | os.PathLike) -> Iterable[tuple[int, list[Node]]]:
    try:
        with open(path, encoding="utf-8", newline="") as file:
            found = list(csv.reader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path}: cannot be read as CSV ({error})") from None
    for number, cells in enumerate(found, 1):
        while cells and not cells[-1].strip():
            cells.pop()
        if not cells:
            continue
        row = [tuple(n.strip() for n in cell.split(SEPARATOR) if n.strip()) for cell in cells]
        bad = [name for node in row for name in node if not parsing.key(name)]
        if len(row) < 2 or not all(row) or bad:
            raise ValueError(
                f"{path}, line {number}: {cells} must hold a group and a label at least, and each "
                "cell a name with a letter or digit"
            )
        yield number, row


def from_wordnet(
    nouns: Nouns, labels: Sequence[tuple[str, str]], groups: Sequence[str], *, max_words: int
) -> dict[str, Any]:
    """A tree from WordNet: synonyms, hyponyms and ancestors of each label.

    The group of a label is the nearest of `groups` above it. Its ancestors are the hypernyms on a
    way up to that group, nearest first; what lies beside such a way, or above, is none of them.

    Args:
      nouns: of WordNet.
      labels: (id, word) of each label; a word may name its sense ("mouse#4").
      groups: words of the groups, likewise.
      max_words: longer names are left out, but for the labels' own.

    Raises:
      ValueError: a word or sense that WordNet lacks, an id given twice, or a label under no group.
    """
    tops = {nouns.synset(word).offset: word.partition("#")[0].strip() for word in groups}

    def fitting(names: Iterable[str]) -> list[str]:
        return [n for n in dict.fromkeys(names) if 0 < _words(n) <= max_words]

    used, leaves = {}, {}
    for leaf_id, word in labels:
        if leaf_id in leaves:
            raise ValueError(f"the label {leaf_id!r} is given twice; ids must differ")
        synset, name = nouns.synset(word), word.partition("#")[0].strip()
        levels = nouns.above(synset)
        top = next((s for level in levels for s in level if s.offset in tops), None)
        if top is None:
            above = [s.names[0] for level in levels for s in level]
            raise ValueError(
                f"no group lies above the label {leaf_id!r} (groups: {list(tops.values())}); add "
                f"one of its hypernyms to --groups: {above}, or choose another sense"
            )
        group = tops[top.offset]
        used[group] = fitting([group, *top.names])
        between = [s for level in levels for s in level if _leads_to(nouns, s, top)]
        below = [n for level in nouns.below(synset) for s in level for n in s.names]
        own = {parsing.key(n) for n in (name, *synset.names)}
        leaves[leaf_id] = {
            "name": name,
            "synonyms": [n for n in fitting(synset.names) if parsing.key(n) != parsing.key(name)],
            "ancestors": [names for s in between if (names := fitting(s.names))],
            "hyponyms": [n for n in fitting(below) if parsing.key(n) not in own],
            "generic": group,
        }
    return checked({"version": 1, "leaves": leaves, "groups": used}, "WordNet", max_words)


def _leads_to(nouns: Nouns, synset: Synset, top: Synset) -> bool:
    """Whether `top` lies above `synset`."""
    return any(s.offset == top.offset for level in nouns.above(synset) for s in level)


def _words(name: str) -> int:
    key = parsing.key(name)
    return key.count(b" ") + 1 if key else 0


def checked(tree: dict[str, Any], source: str, max_words: int) -> dict[str, Any]:
    """The tree without names that decline to answer ("none"), if it is a sound one.

    Raises:
      ValueError: it is not; a label itself may be no abstention and not too long.
    """
    declines = abstention.text_abstains
    for leaf_id, leaf in tree["leaves"].items():
        if declines(leaf["name"]) or _words(leaf["name"]) > max_words:
            raise ValueError(
                f"{source}: the label {leaf_id!r} declines to answer or has more than {max_words} "
                "words; rename it or raise --max_words"
            )
        leaf["synonyms"] = [n for n in leaf["synonyms"] if not declines(n)]
        leaf["hyponyms"] = [n for n in leaf["hyponyms"] if not declines(n)]
    schema.check(tree, source)
    return tree


def read_labels(path: str | os.PathLike) -> list[tuple[str, str]]:
    """(id, word) of each line of a text file: a word, or an id, a tab and a word.

    Raises:
      ValueError: the file cannot be read or has no label.
    """
    try:
        lines = pathlib.Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: cannot read the labels ({error})") from None
    rows = [line.split("\t", 1) for line in lines if line.strip()]
    if not rows:
        raise ValueError(f"{path} has no label; write one a line")
    return [(row[0].strip(), row[-1].strip()) for row in rows]
