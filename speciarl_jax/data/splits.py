"""Recognises the splits that a data set brings along, and chooses those that a part reads.

train/cat/1.jpg   Test_Set/cat/2.jpg   images/val/cat/3.jpg   cat/train/4.jpg
train-00000-of-00002.parquet
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import TypeVar

from absl import logging

TRAINING, VALIDATION, TEST = "training", "validation", "test"
# In place of the name of a split: the folders of these names are labels.
NONE = "none"
_KINDS = {
    TRAINING: ("train", "training", "trn", "tr"),
    VALIDATION: ("val", "valid", "validation", "dev", "devel", "development"),
    TEST: ("test", "testing", "tst", "eval", "evaluation", "heldout", "holdout"),
}
_KIND_OF = {name: kind for kind, names in _KINDS.items() for name in names}
# Words that may stand beside the name of a split, or name a folder around all labels.
_AROUND = ("image", "images", "img", "imgs", "jpegimages", "photo", "photos", "picture", "pictures")
_WORDS = {*_AROUND, "set", "data", "dataset", "split", "seg", "folder", "part"}
_CONTAINERS = {*_AROUND, "data", "dataset"}
_T = TypeVar("_T")


def kind_of(name: str) -> str | None:
    """Returns which split a folder or file is named after, or None.

    "train", "Test_Set", "val2017", "training images" and "seg_train" are names of splits.
    """
    words = re.findall(r"[^\W\d_]+", re.sub(r"([a-z])([A-Z])", r"\1 \2", name).casefold())
    joined = "".join(words)
    if joined.removesuffix("set") in _KIND_OF:
        return _KIND_OF[joined.removesuffix("set")]
    said = [word for word in words if word not in _WORDS]
    return _KIND_OF.get(said[0]) if len(said) == 1 and len(words) > 1 else None


def is_container(name: str) -> bool:
    """Tells whether a folder is named after what it holds, as "images" is."""
    return name.casefold() in _CONTAINERS


def choose(by_split: Mapping[str, Sequence[_T]], split: str, part: str, where: str) -> list[str]:
    """Returns the names of the splits that a part of a data set reads, and logs them.

    Args:
      by_split: name of each split -> its images; not empty.
      split: name of a split to read; "" for those that fit `part`.
      part: of `file_dataset.PARTS`: "all", "training" or "held_out".
      where: name of the data set in messages.

    Raises:
      ValueError: there is no such split, or none that fits.
    """
    sizes = ", ".join(f"{name} ({len(rows)})" for name, rows in by_split.items())
    if split:
        if split not in by_split:
            raise ValueError(
                f"{where}: config.data.options.split (or that of config.evaluation.options) is "
                f"{split!r}; choose one of {sorted(by_split)}, or {NONE!r} if these are labels"
            )
        return [split]
    kinds: dict[str, str] = {}
    for name in by_split:
        kind = kind_of(name) or TRAINING
        if kind in kinds:
            raise ValueError(
                f"{where}: both {kinds[kind]!r} and {name!r} look like the {kind} split; rename "
                "one, or set config.data.options.split (and that of config.evaluation.options)"
            )
        kinds[kind] = name
    held_out = kinds.get(VALIDATION) or kinds.get(TEST)
    if part == "all":
        chosen = list(by_split)
    elif part == "held_out":
        chosen = [held_out or kinds[TRAINING]]
    elif TRAINING in kinds:
        chosen = [kinds[TRAINING]]
    else:
        raise ValueError(
            f"{where} has the splits {sizes} and none for training; add one, or set "
            "config.data.options.split to what to train on"
        )
    logging.info(
        "%s: has the splits %s; part %r reads %s (config.data.options.split, "
        "config.evaluation.options.split)",
        *(where, sizes, part, " and ".join(chosen)),
    )
    return chosen


def chosen(
    by_split: Mapping[str, Sequence[_T]], split: str, part: str, where: str
) -> tuple[list[str], str]:
    """Returns the splits to read (`choose`), and the part of their images.

    Where nothing but a training split is there, a part of it is held out.
    """
    names = choose(by_split, split, part, where)
    alone = not split and {kind_of(name) or TRAINING for name in by_split} == {TRAINING}
    return names, part if alone else "all"


def without_split(
    folders: Iterable[tuple[str, ...]], where: str
) -> dict[tuple[str, ...], tuple[str, tuple[str, ...]]]:
    """Finds the splits among the folders of images.

    A folder around all others that is named after what it holds ("images") is left out, too.

    Args:
      folders: the folders between the root and each image.
      where: name of the data set in messages.

    Returns:
      The folders of an image -> (name of its split or "", the folders without split).

    Raises:
      ValueError: some folders are named after splits and others beside them are not, or two levels
        are.
    """
    rest = {folder: folder for folder in folders}
    rest = _without_containers(rest)
    firsts = {names[0] for names in rest.values() if names}
    named = {name for name in firsts if kind_of(name)}
    if named and (
        others := sorted({names[0] if names else "." for names in rest.values()} - named)
    ):
        _refuse(where, sorted(named), others)
    if named:
        found = {}
        for split in sorted(named):
            inner = {f: n[1:] for f, n in rest.items() if n[0] == split}
            inner = _without_containers(inner, split)
            found |= {folder: (split, names) for folder, names in inner.items()}
    else:
        found = _inner_splits(rest, where)
    again = sorted({n for _, names in found.values() for n in _twins(names, found)})
    if again:
        _refuse(where, again, ["the splits above them"])
    return found


def _without_containers(rest, split=""):
    """Leaves out folders around all others: "images", or the name of the split once more."""
    while True:
        firsts = {names[:1] for names in rest.values()}
        name = next(iter(firsts))[0] if len(firsts) == 1 and any(firsts) else ""
        twice = bool(split) and kind_of(name) == kind_of(split)
        # The folder of the only label may be called as it likes.
        inside = all(len(names) > 1 for names in rest.values())
        if not name or not inside or not (is_container(name) or twice):
            return rest
        rest = {folder: names[1:] for folder, names in rest.items()}


def _inner_splits(rest, where):
    """Finds splits within the folders of the labels: cat/train, cat/test."""
    children: dict[tuple[str, ...], set[str]] = {}
    for names in rest.values():
        for depth in range(len(names)):
            children.setdefault(names[:depth], set()).add(names[depth])
    parents = {
        parent
        for parent, inner in children.items()
        if parent and all(map(kind_of, inner)) and len({kind_of(name) for name in inner}) > 1
    }
    within = {f: names for f, names in rest.items() if names[:-1] in parents}
    if not parents:
        return {folder: ("", names) for folder, names in rest.items()}
    if len(within) < len(rest):
        outside = ["/".join(names) for folder, names in rest.items() if folder not in within]
        _refuse(where, ["/".join(next(iter(within.values())))], outside)
    return {folder: (names[-1], names[:-1]) for folder, names in rest.items()}


def _twins(names, found):
    """Lists folders below a split that are named after splits and have no other siblings."""
    if not names or not kind_of(names[-1]):
        return []
    siblings = {n[-1] for _, n in found.values() if n[:-1] == names[:-1] and n}
    return [names[-1]] if all(map(kind_of, siblings)) and len(siblings) > 1 else []


def _refuse(where, named, others):
    raise ValueError(
        f"{where}: the folders {named[:5]} look like splits, but {others[:5]} beside them do not; "
        "move one of the two away, or set config.data.options.split (and that of "
        f"config.evaluation.options) to {NONE!r} if all of them are labels"
    )
