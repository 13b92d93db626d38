"""The file of a taxonomy: reading, checking, and the names it puts around a leaf.

Format of the file (JSON):

    {"version": 1,
     "leaves": {id: {"name": "eagle", "generic": "animal",
                     "synonyms": ["bird of Jove"],                          # optional
                     "ancestors": [["bird of prey", "raptor"], ["bird"]],   # optional
                     "broader": [["vertebrate"]],                           # optional
                     "hyponyms": ["bald eagle"]}},                          # optional
     "groups": {"animal": ["animal", "creature"]},
     "modifiers": ["young", "male"],                                        # optional
     "frames": ["flock of"],                                                # optional
     "benchmark": [ids of leaves]}                                          # optional

Further keys of a leaf ("keys", "mid", "gloss", ...) are left to others. Each ancestor is a list
of accepted names; the nearest comes first. `broader` lists the ancestors that say little: their
names count as generic, like those of the group. `modifiers` are words beside a name that make it a
form of the label ("male eagle"); `frames` stand in front of a name, or behind it, and say nothing
of the label ("flock of eagles"). Those that begin with a preposition stand behind it alone ("eagle
in a tree"). A name may hold alternatives in brackets, none of them too: "[Boeing |]737-800" stands
for "Boeing 737-800" and "737-800".
"""

import itertools
import json
import os
import re
from collections.abc import Iterator, Mapping

from speciarl_jax.verifiers import parsing
from speciarl_jax.verifiers.category import Category


def read(path: str | os.PathLike) -> object:
    """The JSON of a file, unchecked.

    Raises:
      ValueError: the file cannot be read or is no JSON.
    """
    try:
        with open(path, encoding="utf-8") as file:
            return json.load(file)
    except OSError as error:
        raise ValueError(f"{path}: cannot read the taxonomy ({error.strerror})") from error
    except ValueError as error:  # malformed JSON or UTF-8
        raise ValueError(f"{path}: the taxonomy is no valid JSON ({error})") from error


_BRACKETS = re.compile(r"\[([^\[\]]*)\]")


def expand(name: str) -> list[str]:
    """The names that a name with alternatives stands for; spaces around an empty one collapse."""
    if "[" not in name:
        return [name]
    # Every second part is the content of brackets.
    parts = _BRACKETS.split(name)
    choices = [part.split("|") if i % 2 else [part] for i, part in enumerate(parts)]
    found = (" ".join("".join(chosen).split()) for chosen in itertools.product(*choices))
    return list(dict.fromkeys(found))


def _names(value: object, where: str, *, required: bool = False) -> list[str]:
    if not isinstance(value, list) or not all(isinstance(v, str) for v in value):
        raise ValueError(f"{where}: got {value!r}; write a list of names")
    for name in value:
        if re.search(r"[\[\]]", _BRACKETS.sub("", name)):
            raise ValueError(f"{where}: {name!r} has a bracket without its other; write [a|b]")
        if not all(map(parsing.key, expand(name))):
            raise ValueError(f"{where}: {name!r} has no letter or digit; mend or remove the name")
    if required and not value:
        raise ValueError(f"{where}: the list is empty; give at least one name")
    return value


def _check_leaf(leaf_id: str, leaf: object, groups: Mapping, source: str) -> None:
    where = f"{source}: leaf {leaf_id!r}"
    if not isinstance(leaf, dict):
        raise ValueError(f"{where}: got {leaf!r}; write an object with 'name' and 'generic'")
    for field in ("name", "generic"):
        if not isinstance(leaf.get(field), str):
            raise ValueError(f"{where}, field {field!r}: got {leaf.get(field)!r}; write a string")
    _names([leaf["name"]], f"{where}, field 'name'", required=True)
    if leaf["generic"] not in groups:
        raise ValueError(
            f"{where}, field 'generic': {leaf['generic']!r} is not among the groups "
            f"{sorted(groups)}; add the group or mend the leaf"
        )
    for field in ("synonyms", "hyponyms"):
        _names(leaf.get(field, []), f"{where}, field {field!r}")
    for field in ("ancestors", "broader"):
        nodes = leaf.get(field, [])
        if not isinstance(nodes, list):
            raise ValueError(f"{where}, field {field!r}: got {nodes!r}; write a list of lists")
        for i, node in enumerate(nodes):
            _names(node, f"{where}, field '{field}[{i}]'", required=True)


def check(data: object, source: str) -> None:
    """Raises a ValueError that names source, leaf and field where `data` breaks the format."""
    if not isinstance(data, dict):
        raise ValueError(f"{source}: got a JSON {type(data).__name__}; a taxonomy is an object")
    if data.get("version") != 1:
        raise ValueError(f"{source}: version is {data.get('version')!r}; this code reads version 1")
    for field in ("leaves", "groups"):
        if not isinstance(data.get(field), dict) or not data[field]:
            raise ValueError(f"{source}: field {field!r} must be an object that is not empty")
    for group, names in data["groups"].items():
        _names(names, f"{source}: group {group!r}", required=True)
    for leaf_id, leaf in data["leaves"].items():
        _check_leaf(leaf_id, leaf, data["groups"], source)
    for field in ("modifiers", "frames"):
        _names(data.get(field, []), f"{source}: field {field!r}")
    benchmark = data.get("benchmark", [])
    if not isinstance(benchmark, list):
        raise ValueError(
            f"{source}: field 'benchmark': got {benchmark!r}; write a list of leaf ids"
        )
    for leaf_id in benchmark:
        if not isinstance(leaf_id, str) or leaf_id not in data["leaves"]:
            raise ValueError(f"{source}: field 'benchmark': {leaf_id!r} is not among the leaves")


def relations(leaf: Mapping, groups: Mapping) -> Iterator[tuple[str, Category, str]]:
    """Names around a leaf, what they mean for it, and a description; the first one of a key wins.

    The leaf's own names come first. The group comes before the ancestors: where a node between
    repeats a name of the group, the name is worth no more than the group.
    """
    own = f"of {leaf['name']!r}"
    fields = [
        (Category.SPECIFIC, "name", "", [leaf["name"]]),
        (Category.SPECIFIC, "synonym", own, leaf.get("synonyms", [])),
        (Category.MORE_SPECIFIC, "hyponym", "", leaf.get("hyponyms", [])),
        (Category.GENERIC, "group", "", groups[leaf["generic"]]),
    ]
    for i, node in enumerate(leaf.get("ancestors", [])):
        fields.append((Category.LESS_SPECIFIC, f"ancestor {i + 1}", "", node))
    for i, node in enumerate(leaf.get("broader", [])):
        fields.append((Category.GENERIC, f"broader ancestor {i + 1}", "", node))
    for category, what, whose, names in fields:
        for name in itertools.chain.from_iterable(map(expand, names)):
            yield name, category, f"{what} {name!r} {whose}".rstrip()
