"""Makes label trees from names and label paths (format: `verifiers/label_tree/schema.py`)."""

import atexit
import hashlib
import json
import os
import pathlib
import re
import shutil
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from absl import logging

_NUMBER = re.compile(r"^(\d+\.|0\d*[_-])(?=\D)")
# Group of labels that have neither a label path nor a group.
_ANYTHING = ("object", "thing")


def clean(name: str) -> str:
    """Removes the number before a name, and underscores.

    "001.Black_footed_Albatross" -> "Black footed Albatross".
    """
    return " ".join(_NUMBER.sub("", name.strip()).replace("_", " ").split())


def from_paths(paths: Mapping[str, Sequence[str]], group: str, where: str) -> dict[str, Any]:
    """Makes a tree from label paths.

    Args:
      paths: label id -> names from the most general to the label itself, which is always there.
      group: what all labels are ("bird"); "" takes the first name of each path.
      where: name of the data set in messages.

    Returns:
      The tree. A label without group and path gets the group "object", with which the taxonomy
      verifier can only tell right from wrong; that is logged.

    Raises:
      ValueError: a name has no letter or digit.
    """
    leaves, groups, flat = {}, {}, 0
    for label_id, path in paths.items():
        if not all(any(c.isalnum() for c in name) for name in path):
            raise ValueError(
                f"{where}: the label {label_id!r} ({' > '.join(path)!r}) has a name without any "
                "letter or digit; rename or remove it"
            )
        *above, name = path
        if group:
            top, names = group, [group]
        elif above:
            top, names, above = above[0], [above[0]], above[1:]
        else:
            top, names, flat = _ANYTHING[0], list(_ANYTHING), flat + 1
        groups[top] = names
        ancestors = [[parent] for parent in reversed(above) if parent not in (name, top)]
        leaves[label_id] = {"name": name, "generic": top, "ancestors": ancestors}
    if flat:
        logging.warning(
            "%s: %d of %d labels have no more general name, so the taxonomy verifier can only tell "
            "right from wrong for them. Set config.data.options.group to what all labels "
            "are ('bird'), give label paths (nested folders, or a label path column), write a "
            "label tree of your own (config.verifier.options.path), or use another verifier",
            where,
            flat,
            len(paths),
        )
    return {"version": 1, "groups": groups, "leaves": leaves}


def read(source: Any) -> dict[str, Any] | None:
    """Returns the tree of a source: its `label_tree`, or the content of its `TAXONOMY_PATH`."""
    tree = getattr(source, "label_tree", None)
    if tree is None and getattr(source, "TAXONOMY_PATH", None):
        tree = json.loads(pathlib.Path(source.TAXONOMY_PATH).read_text())
    return tree


def merge(trees: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Merges trees into one with the leaves, groups, modifiers and frames of all.

    Raises:
      ValueError: a leaf differs between two trees.
    """
    leaves: dict[str, Any] = {}
    groups: dict[str, list[str]] = {}
    words: dict[str, list[str]] = {"modifiers": [], "frames": []}
    for tree in trees:
        for kind, known in words.items():
            known += [one for one in tree.get(kind, []) if one not in known]
        for name, names in tree["groups"].items():
            known = groups.setdefault(name, [])
            known += [n for n in names if n not in known]
        for label_id, leaf in tree["leaves"].items():
            if leaves.setdefault(label_id, leaf) != leaf:
                raise ValueError(
                    f"label {label_id!r} stands in two data sets with different names or paths "
                    f"({leaves[label_id]} and {leaf}); rename it in one of them"
                )
    words = {kind: known for kind, known in words.items() if known}
    return {"version": 1, "groups": groups, **words, "leaves": leaves}


def path_of(sources: Iterable[Any]) -> str | os.PathLike | None:
    """Returns a file with the merged tree of all sources, or None if one source has no tree.

    If all sources share one file, that file is returned. Otherwise the tree is written to a
    temporary folder, which is removed when the process ends.

    Raises:
      ValueError: a leaf differs between two trees.
    """
    sources = list(sources)
    paths = {
        None if hasattr(source, "label_tree") else getattr(source, "TAXONOMY_PATH", None)
        for source in sources
    }
    if len(paths) == 1 and None not in paths:
        return paths.pop()
    trees = [read(source) for source in sources]
    if None in trees:
        return None
    text = json.dumps(merge(trees), indent=1)
    folder = pathlib.Path(tempfile.mkdtemp(prefix="label_tree_"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    path = folder / f"{hashlib.sha256(text.encode()).hexdigest()[:16]}.json"
    path.write_text(text)
    return path
