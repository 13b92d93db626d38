"""Recognises the splits that a data set brings along, and chooses those that a part reads.

train/cat/1.jpg   Test_Set/cat/2.jpg   images/val/cat/3.jpg   cat/train/4.jpg
pets/train/cat/5.jpg   bird/train/eagle/6.jpg   trainA/cat/7.jpg
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
    VALIDATION: ("val", "valid", "validate", "validation", "dev", "devel", "development"),
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
    words = _words(name)
    joined = "".join(words)
    if joined.removesuffix("set") in _KIND_OF:
        return _KIND_OF[joined.removesuffix("set")]
    said = [word for word in words if word not in _WORDS]
    return _KIND_OF.get(said[0]) if len(said) == 1 and len(words) > 1 else None


def kinds_of(names: Iterable[str]) -> dict[str, str]:
    """Returns name -> which split it is named after, of names beside each other.

    "trainA" and "testA" are names of splits because they differ in nothing else.
    """
    names = list(names)
    if found := {name: kind for name in names if (kind := kind_of(name))}:
        return found
    rests: dict[tuple[str, ...], set[str]] = {}
    for name in names:
        words = _words(name)
        said = [word for word in words if word in _KIND_OF]
        if len(said) == 1:
            found[name] = _KIND_OF[said[0]]
            rest = tuple(word for word in words if word != said[0])
            rests.setdefault(rest, set()).add(found[name])
    return found if any(TRAINING in k and len(k) > 1 for k in rests.values()) else {}


def _words(name: str) -> list[str]:
    return re.findall(r"[^\W\d_]+", re.sub(r"([a-z])([A-Z])", r"\1 \2", name).casefold())


def is_container(name: str) -> bool:
    """Tells whether a folder is named after what it holds, as "images" is."""
    return name.casefold() in _CONTAINERS


def choose(
    by_split: Mapping[str, Sequence[_T]], split: str, part: str, where: str, unit: str = ""
) -> list[str]:
    """Returns the names of the splits that a part of a data set reads, and logs them.

    Args:
      by_split: name of each split -> its images; not empty.
      split: name of a split to read; "" for those that fit `part`.
      part: of `file_dataset.PARTS`: "all", "training" or "held_out".
      where: name of the data set in messages.
      unit: what the log counts, where that is no images (" files").

    Raises:
      ValueError: there is no such split, or none that fits.
    """
    sizes = ", ".join(f"{name} ({len(rows)}{unit})" for name, rows in by_split.items())
    if split:
        if split not in by_split:
            raise ValueError(
                f"{where}: config.data.options.split (or that of config.evaluation.options) is "
                f"{split!r}; choose one of {sorted(by_split)}, or {NONE!r} if these are labels"
            )
        return [split]
    kinds: dict[str, str] = {}
    kind_by_name = kinds_of(by_split)
    for name in by_split:
        kind = kind_by_name.get(name, TRAINING)
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
    by_split: Mapping[str, Sequence[_T]], split: str, part: str, where: str, unit: str = ""
) -> tuple[list[str], str]:
    """Returns the splits to read (`choose`), and the part of their images.

    Where nothing but a training split is there, a part of it is held out.
    """
    names = choose(by_split, split, part, where, unit)
    if split:
        logging.info(
            "%s: reads all of the split %r; `part` and `held_out_share` choose from a folder "
            "without splits, so give the folder of a split as the path to read a part of it",
            *(where, split),
        )
    alone = not split and set(kinds_of(by_split).values()) <= {TRAINING}
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
    rest = _without_wrapper(_without_containers({f: f for f in folders}), where)
    firsts = {names[0] for names in rest.values() if names}
    kinds = kinds_of(firsts)
    beside = firsts - kinds.keys() | {"." for names in rest.values() if not names}
    if kinds and beside:
        _refuse(where, kinds, f"{sorted(beside)[:5]} beside them do not")
    if kinds and not any(map(kind_of, kinds)) and any(len(names) < 2 for names in rest.values()):
        _refuse(where, kinds, "images lie in them without a folder for their label")
    if kinds:
        found = {}
        for split in sorted(kinds):
            inner = {f: n[1:] for f, n in rest.items() if n[0] == split}
            inner = _without_containers(inner, split)
            found |= {folder: (split, names) for folder, names in inner.items()}
    else:
        found = _inner_splits(rest, where)
    again = {n for _, names in found.values() for n in _twins(names, found)}
    if again:
        _refuse(where, again, "so do the folders above them")
    return found


def _without_wrapper(rest, where):
    """Leaves out the folders around all splits: that of pets/train/cat and pets/test/dog."""
    depth = 1
    while len({names[:depth] for names in rest.values()}) == 1 and all(
        len(names) > depth for names in rest.values()
    ):
        inner = {names[depth] for names in rest.values()}
        wrapper = next(iter(rest.values()))[:depth]
        labels = any(len(names) > depth + 1 for names in rest.values())
        if labels and len(kinds_of(inner)) == len(inner) and not kind_of(wrapper[-1]):
            logging.info(
                "%s: the splits lie in %r, which is taken for no name of what the images show; set "
                "config.data.options.group if it is one",
                *(where, "/".join(wrapper)),
            )
            return {folder: names[depth:] for folder, names in rest.items()}
        depth += 1
    return rest


def _without_containers(rest, split=""):
    """Leaves out folders around all others: "images", or the name of the split once more."""
    while True:
        firsts = {names[:1] for names in rest.values()}
        name = next(iter(firsts))[0] if len(firsts) == 1 and any(firsts) else ""
        twice = kind_of(name) is not None and kind_of(name) == kind_of(split)
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
    children.pop((), None)
    kinds = {parent: {kind_of(name) for name in inner} for parent, inner in children.items()}
    for parent, here in kinds.items():
        if None in here and TRAINING in here and len(here) > 2:
            named = filter(kind_of, children[parent])
            others = sorted(name for name in children[parent] if not kind_of(name))
            _refuse(where, named, f"{others[:5]} beside them in {'/'.join(parent)!r} do not")
    parents = {parent for parent, here in kinds.items() if None not in here}
    if not any(len(kinds[parent]) > 1 for parent in parents):
        parents = set()
    found = {}
    for folder, names in rest.items():
        places = [depth for depth in range(1, len(names)) if names[:depth] in parents]
        if parents and len(places) != 1:
            here = sorted({c for parent in parents for c in children[parent]})
            _refuse(where, here, f"{'/'.join(names)!r} lies in {len(places)} of them")
        depth = places[0] if places else 0
        split = names[depth] if places else ""
        found[folder] = (split, names[:depth] + names[depth + 1 :] if places else names)
    return found


def _twins(names, found):
    """Lists folders below a split that are named after splits and have no other siblings."""
    if not names or not kind_of(names[-1]):
        return []
    siblings = {n[-1] for _, n in found.values() if n[:-1] == names[:-1] and n}
    return [names[-1]] if all(map(kind_of, siblings)) and len(siblings) > 1 else []


def _refuse(where, named, but):
    raise ValueError(
        f"{where}: the folders {sorted(named)[:5]} look like splits, but {but}; move one of the "
        "two away, give the folder of one split as config.data.options.path (and that of another "
        "as config.evaluation.options.path, with `part` 'all'), or set config.data.options.split "
        f"(and that of config.evaluation.options) to {NONE!r} if all of them are labels"
    )
