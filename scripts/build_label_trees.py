"""Builds and checks the label trees of the published data sets from their reviewed tables.

    python -m scripts.build_label_trees [NAME ...] [--check]

Reads `scripts/label_trees/NAME*.tsv` and writes `speciarl_jax/data/label_trees/NAME.json`; with
--check it writes nothing and fails where the file is another. Lists in a cell are separated by
"; ", and lines that begin with "#" are comments.

    NAME.tsv         class, name, synonyms, forms, above: a row a class, in the order of the classes
    NAME_nodes.tsv   node, names, above, rank: a row a node above the classes
    NAME_words.tsv   kind, words: the tree's `modifiers` and `frames`
    NAME_shared.tsv  name, classes, reason: names that are right for several classes

A module `scripts/label_trees/NAME.py` may make the first two instead (`rows`, `nodes`). A node
without a node above it is a group. An ancestor that holds for more than a quarter of the classes
says little and is generic; a narrower one is less specific. `rank` overrules this for a node:
"generic: reason" or "less specific: reason".

Refused are circles, classes under no group or several, nodes above nothing, and every name that is
right (specific or more specific) for two classes and not listed as shared. Names of a class that
are less specific or generic for another class are printed: such a class must be an ancestor.
"""

import csv
import importlib
import json
import pathlib
import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from speciarl_jax.verifiers import parsing
from speciarl_jax.verifiers.category import Category
from speciarl_jax.verifiers.label_tree import schema
from speciarl_jax.verifiers.taxonomy import Taxonomy

TABLES = pathlib.Path(__file__).parent / "label_trees"
TREES = pathlib.Path(__file__).resolve().parent.parent / "speciarl_jax" / "data" / "label_trees"
NAMES = (
    "caltech_birds2011",
    "cars196",
    "cifar100",
    "fgvc_aircraft",
    "food101",
    "oxford_flowers102",
    "oxford_iiit_pet",
)
# A node that holds for a larger share of the classes says little.
BROAD = 1 / 4
RANKS = {"generic": Category.GENERIC, "less specific": Category.LESS_SPECIFIC}
LEAF_HEADER = ("class", "name", "synonyms", "forms", "above")
NODE_HEADER = ("node", "names", "above", "rank")
RIGHT = (Category.SPECIFIC, Category.MORE_SPECIFIC)


class Leaf(NamedTuple):
    """A class: its name, other names, kinds of it, and the nodes directly above."""

    class_name: str
    name: str
    synonyms: list[str]
    forms: list[str]
    above: list[str]


class Node(NamedTuple):
    """A node above classes: its names, the nodes directly above, and a rank or ""."""

    names: list[str]
    above: list[str]
    rank: str


def cells(path: pathlib.Path, header: Sequence[str]) -> Iterator[list[str]]:
    """Reads the rows of a table.

    Raises:
      ValueError: the header is another, or a row has too many cells.
    """
    lines = (line for line in path.read_text("utf-8").splitlines() if line and line[0] != "#")
    rows = csv.reader(lines, delimiter="\t", quoting=csv.QUOTE_NONE)
    if (first := next(rows, [])) != list(header):
        raise ValueError(f"{path.name}: the header is {first}; write {list(header)}")
    for row in rows:
        if len(row) > len(header) or not row[0].strip():
            raise ValueError(f"{path.name}: {row} does not fit the header {list(header)}")
        yield [*(cell.strip() for cell in row), *[""] * (len(header) - len(row))]


def parts(cell: str) -> list[str]:
    """The items of a list in a cell."""
    return [item.strip() for item in cell.split(";") if item.strip()]


def read_leaves(name: str) -> list[Leaf]:
    """The classes of a data set, in their order."""
    if (TABLES / f"{name}.py").exists():
        return [Leaf(*row) for row in importlib.import_module(f"scripts.label_trees.{name}").rows()]
    rows = cells(TABLES / f"{name}.tsv", LEAF_HEADER)
    return [Leaf(first, label, *map(parts, lists)) for first, label, *lists in rows]


def read_nodes(name: str) -> dict[str, Node]:
    """The nodes above the classes by id, the name that comes first."""
    if (TABLES / f"{name}.py").exists():
        rows = importlib.import_module(f"scripts.label_trees.{name}").nodes()
    else:
        found = cells(TABLES / f"{name}_nodes.tsv", NODE_HEADER)
        rows = [(node, parts(names), parts(above), rank) for node, names, above, rank in found]
    nodes: dict[str, Node] = {}
    for node, names, above, rank in rows:
        if node in nodes:
            raise ValueError(f"{name}: the node {node!r} has two rows; write one")
        if rank and (rank.partition(":")[0] not in RANKS or not rank.partition(":")[2].strip()):
            raise ValueError(
                f"{name}: node {node!r}: rank {rank!r} must be '{list(RANKS)}: reason'"
            )
        nodes[node] = Node([node, *names], above, rank.partition(":")[0])
    return nodes


def ancestry(name: str, leaf: Leaf, nodes: Mapping[str, Node]) -> list[str]:
    """The ids of all nodes above a class, nearest first.

    Raises:
      ValueError: a node that has no row, or not exactly one group at the top.
    """
    found, level = [], leaf.above
    while level:
        lost = [node for node in level if node not in nodes]
        if lost:
            raise ValueError(f"{name}: {leaf.class_name!r} is under {lost}, which have no row")
        # A node that is met again further up stands behind what is below it.
        found = [node for node in found if node not in level] + list(dict.fromkeys(level))
        level = [above for node in level for above in nodes[node].above]
        if len(found) > len(nodes) or leaf.class_name in level or len(level) > 10_000:
            raise ValueError(f"{name}: the nodes above {leaf.class_name!r} form a circle")
    tops = [node for node in found if not nodes[node].above]
    if len(tops) != 1:
        raise ValueError(
            f"{name}: {leaf.class_name!r} is under the groups {tops}; put it under one"
        )
    return found


def keys_of(names: Sequence[str]) -> set[bytes]:
    """The keys of names and their alternatives."""
    return {parsing.key(one) for name in names for one in schema.expand(name)}


def build(name: str) -> dict[str, Any]:
    """Makes the tree of a data set from its tables.

    Raises:
      ValueError: the tables contradict themselves or the rules.
    """
    leaves, nodes = read_leaves(name), read_nodes(name)
    above = {leaf.class_name: ancestry(name, leaf, nodes) for leaf in leaves}
    if len(above) < len(leaves):
        raise ValueError(f"{name}: a class has two rows")
    idle = nodes.keys() - {node for ids in above.values() for node in ids}
    if idle:
        raise ValueError(f"{name}: no class is under the nodes {sorted(idle)}; remove them")
    holds = defaultdict(set)
    for class_name, ids in above.items():
        for key in keys_of([n for node in ids for n in nodes[node].names]):
            holds[key].add(class_name)
    groups, made = {}, {}
    for leaf in leaves:
        group = next(node for node in above[leaf.class_name] if not nodes[node].above)
        groups[group] = nodes[group].names
        levels = {"ancestors": [], "broader": []}
        for node in above[leaf.class_name]:
            if node == group:
                continue
            by_rank = {"ancestors": [], "broader": []}
            for one in nodes[node].names:
                share = max(len(holds[key]) for key in keys_of([one])) / len(leaves)
                rank = nodes[node].rank or ("generic" if share > BROAD else "less specific")
                by_rank["broader" if rank == "generic" else "ancestors"].append(one)
            for field, names in by_rank.items():
                levels[field] += [names] if names else []
        _check_own(name, leaf, [n for node in above[leaf.class_name] for n in nodes[node].names])
        fields = {"synonyms": leaf.synonyms, **levels, "hyponyms": leaf.forms}
        made[f"{name}/{leaf.class_name}"] = {"name": leaf.name, "generic": group} | {
            field: value for field, value in fields.items() if value
        }
    tree = {"version": 1, "groups": groups, **read_words(name), "leaves": made}
    schema.check(tree, name)
    return tree


def _check_own(name: str, leaf: Leaf, above: Sequence[str]) -> None:
    """Refuses a name that a class has twice, in two meanings."""
    seen: dict[bytes, str] = {}
    for field, names in (
        ("name", [leaf.name]),
        ("synonyms", leaf.synonyms),
        ("forms", leaf.forms),
        ("above", above),
    ):
        keys = keys_of(names)
        for key in keys & seen.keys():
            if (field, seen[key]) not in (("synonyms", "name"), ("above", "above")):
                raise ValueError(
                    f"{name}: {key.decode()!r} stands for {leaf.class_name!r} in {seen[key]} and "
                    f"in {field}; keep one"
                )
        seen |= dict.fromkeys(keys, field)


def read_words(name: str) -> dict[str, list[str]]:
    """The tree's modifiers and frames, their alternatives written out."""
    path = TABLES / f"{name}_words.tsv"
    found = dict(cells(path, ("kind", "words"))) if path.exists() else {}
    if found.keys() - {"modifiers", "frames"}:
        raise ValueError(f"{path.name}: kinds are {sorted(found)}; write modifiers and frames")
    return {
        kind: list(dict.fromkeys(one for phrase in parts(words) for one in schema.expand(phrase)))
        for kind, words in found.items()
    }


def shared_names(tree: Mapping[str, Any]) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
    """Finds names that mean something to several classes, their automatic forms included.

    Returns:
      Names that are right for several classes, and names of one class that are less specific or
      generic for others: each with the ids of the classes, in the second with the owner first.
    """
    taxonomy = Taxonomy(tree)
    right, other = defaultdict(list), defaultdict(list)
    for leaf_id, relation in zip(taxonomy.leaf_ids, taxonomy.relations, strict=True):
        for key, (category, *_) in relation.items():
            (right if category in RIGHT else other)[key].append(leaf_id)
    both = {k.decode(): ids for k, ids in right.items() if len(ids) > 1}
    return both, {k.decode(): [*right[k], *ids] for k, ids in other.items() if k in right}


def _own(leaf: Mapping[str, Any]) -> list[str]:
    return [leaf["name"], *leaf.get("synonyms", []), *leaf.get("hyponyms", [])]


def check_shared(name: str, tree: Mapping[str, Any]) -> list[str]:
    """Compares what is shared with the table of what may be; returns lines to print.

    Raises:
      ValueError: a name is right for several classes, and the table does not say why.
    """
    path = TABLES / f"{name}_shared.tsv"
    rows = list(cells(path, ("name", "classes", "reason"))) if path.exists() else []
    allowed = {}
    for said, classes, reason in rows:
        if not reason:
            raise ValueError(f"{path.name}: {said!r} has no reason; give one")
        for key in keys_of([said]):
            allowed[key.decode()] = {f"{name}/{c}" for c in parts(classes)}
    both, owned = shared_names(tree)
    # Plurals and other spellings of a shared name are shared as well.
    written = {key.decode() for leaf in tree["leaves"].values() for key in keys_of(_own(leaf))}
    forms = {said for said, ids in both.items() if said not in written}
    allowed_forms = [set(ids) for ids in allowed.values()]
    bad = {
        said: ids
        for said, ids in both.items()
        if not any(
            set(ids) <= few
            for few in (allowed_forms if said in forms else [allowed.get(said, set())])
        )
    }
    if bad:
        lines = "\n".join(f"  {said!r}: {ids}" for said, ids in sorted(bad.items()))
        raise ValueError(
            f"{name}: {len(bad)} names are right for several classes; make each a node above them, "
            f"or give the reason in {path.name}:\n{lines}"
        )
    idle = allowed.keys() - both.keys()
    if idle:
        raise ValueError(f"{path.name}: {sorted(idle)} are not shared; remove the rows")
    lines = [f"{name}: {len(both)} names are right for several classes, each with its reason"]
    return lines + [
        f"{name}: {said!r} is right for {ids[0]} and broader for {len(ids) - 1} classes"
        for said, ids in sorted(owned.items())
    ]


def text(tree: Mapping[str, Any]) -> str:
    """The content of the file: a line a leaf."""
    lines = [
        f"{json.dumps(key)}: {json.dumps(leaf, ensure_ascii=False)}"
        for key, leaf in tree["leaves"].items()
    ]
    head = {key: value for key, value in tree.items() if key != "leaves"}
    return (
        json.dumps(head, ensure_ascii=False)[:-1]
        + ',\n"leaves": {\n'
        + ",\n".join(lines)
        + "\n}}\n"
    )


def main(arguments: Sequence[str]) -> int:
    """Builds the trees; the exit status is 1 if one is refused, or is stale with --check."""
    failed = False
    for name in [one for one in arguments if not one.startswith("-")] or NAMES:
        try:
            tree = build(name)
            print("\n".join(check_shared(name, tree)))
        except (ValueError, OSError) as error:
            print(error, file=sys.stderr)
            failed = True
            continue
        path, made = TREES / f"{name}.json", text(tree)
        if "--check" in arguments:
            if not path.exists() or path.read_text("utf-8") != made:
                print(f"{path} is stale: python -m scripts.build_label_trees {name}")
                failed = True
        else:
            path.write_text(made, "utf-8")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
