"""Makes names that people say of the names of folders, and of the cells of a table."""

import re
from collections.abc import Iterable, Sequence

from absl import logging

_NUMBER = r"^\s*[(\[#]?(\d+)(\s*[._)\]\-:、]\s*|\s+)+"
_NUMBERED = re.compile(_NUMBER + r"(?=[^\W\d_])")
# What may also carry a running number where others beside it do: "03_2_door_car".
_BEFORE_NUMBER = re.compile(_NUMBER + r"(?=\d)")
_TIGHT = re.compile(r"^(\d{2,})(?=[^\W\d_])")  # "01cat"
# Codes of data sets, which nobody says: the number of a WordNet synset, and that of a class.
_SYNSET = re.compile(r"^n\d{8}[\s_.\-]+(?=\w)")
_CLASS = r"^(?:class|cls|category|label|id|object|item)[\s_\-]*(\d+)"
_CLASS_NUMBER = re.compile(_CLASS + r"([\s_.\-]+)(?=[^\W\d_])", re.IGNORECASE)
_CODE = re.compile(r"n\d{8}|" + _CLASS.removeprefix("^"), re.IGNORECASE)
_FEW = 5


def tidy(name: str) -> str:
    """Puts one space in place of underscores and runs of spaces."""
    return " ".join(name.replace("_", " ").split())


def clean_siblings(names: Iterable[str]) -> dict[str, str]:
    """Makes names readable, and takes running numbers from all of them or from none.

    "01_cat" ... "10_fox" and "001.Black_footed_Albatross" carry running numbers; "737-200",
    "3-series" and "5-series" carry none.

    Args:
      names: folders beside each other, or all labels of a table.

    Returns:
      Each name -> how people say it.
    """
    names = list(dict.fromkeys(names))
    plain = {name: tidy(name) for name in names}
    bare = plain | {name: tidy(name[end:]) for name, end in _ends_of_numbers(names).items()}
    distinct = len({name.casefold() for name in bare.values()}) == len(
        {name.casefold() for name in plain.values()}
    )
    return bare if distinct else plain


def _ends_of_numbers(names: list[str]) -> dict[str, int]:
    """Returns name -> where the number or code in front of it ends, of names that have one."""
    if found := {name: m.end() for name in names if (m := _SYNSET.match(name))}:
        return found
    for pattern in (_CLASS_NUMBER, _TIGHT):
        found = {name: m for name in names if (m := pattern.match(name))}
        digits = [m[1] for m in found.values()]
        padded = len(set(map(len, digits))) == 1 and any(d[0] == "0" for d in digits)
        counts = len(set(map(int, digits))) == len(names) > 1
        if len(found) == len(names) and counts and (padded or pattern is _CLASS_NUMBER):
            return {name: m.end() for name, m in found.items()}
    found = {name: m for name in names if (m := _NUMBERED.match(name))}
    if not found or not _are_running(found, len(names)):
        return {}
    also = {name: m for name in names if (m := _BEFORE_NUMBER.match(name))}
    widths = {len(m[1]) for m in found.values()}
    found |= {name: m for name, m in also.items() if len(widths) == 1 and len(m[1]) in widths}
    return {name: m.end() for name, m in found.items()}


def _are_running(found: dict[str, re.Match], count: int) -> bool:
    """Tells whether the numbers before names count the names, and belong to none of them."""
    digits = [m[1] for m in found.values()]
    numbers = sorted(map(int, digits))
    if len(set(numbers)) < len(numbers):
        return False
    # A number that is written with zeros in front of it is no size and no count of a thing.
    padded = len(set(map(len, digits))) == 1 and any(d[0] == "0" and len(d) > 1 for d in digits)
    mixed = any(d[0] == "0" and len(d) > 1 for d in digits)
    if padded or mixed:
        return True
    if len(found) < count or count < 2:
        # One of many labels may be "3 legged stool"; "12.Name" is still a number and a name.
        return all(m[2] == "." for m in found.values())
    marks = {m[2].strip() or " " for m in found.values()}
    dense = numbers[0] <= 1 and numbers[-1] < 2 * count
    return dense or (len(marks) == 1 and marks <= {"_", ".", ")"})


def clean_paths(paths: Iterable[Sequence[str]]) -> dict[tuple[str, ...], list[str]]:
    """Makes the names of label paths readable; the names below one name are siblings.

    Returns:
      Each path -> its names as people say them.
    """
    paths = [tuple(path) for path in paths]
    children: dict[tuple[str, ...], list[str]] = {}
    for path in paths:
        for depth, name in enumerate(path):
            children.setdefault(path[:depth], []).append(name)
    said = {parent: clean_siblings(names) for parent, names in children.items()}
    return {path: [said[path[:i]][name] for i, name in enumerate(path)] for path in paths}


def report_numbers(labels: Iterable[str], where: str) -> None:
    """Logs the labels that begin with a number, and those that are codes and no names."""
    labels = set(labels)
    found = sorted(label for label in labels if label[:1].isdigit())
    codes = sorted(label for label in labels if _CODE.fullmatch(label))
    if codes:
        logging.warning(
            "%s: %d labels are codes and no names (%s), which no policy knows; rename them to what "
            "the images show",
            *(where, len(codes), ", ".join(map(repr, codes[:_FEW]))),
        )
    if found:
        logging.warning(
            "%s: %d labels begin with a number (%s); a policy must say it to be right. Rename them "
            "if the number only counts them",
            *(where, len(found), ", ".join(map(repr, found[:_FEW]))),
        )
