"""Reads label paths, from the most general name to the label, and finds what separates the names.

animal > bird > eagle   animal/bird/eagle   animal | bird   ["animal", "bird"]
"""

import ast
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from absl import logging

from speciarl_jax.data import label_names

# What may stand between names. The first ones hardly stand within a name.
_SURE = (">", "→", "»", "›", "::", "|", ";", "\\", "\t")
_UNSURE = ("/", ",", ":", "<", "~", "•", "·", "^")
# What stands within names, too, so it separates names only where the label is the last of them.
_RARE = (" - ", "_", ".", "+", "&", "-")
_ARROWS = re.compile(r"\s*([-=~]+>|[>＞⇒⇨⟶⟹➔➜➝▸▶►⊃⊇]+)\s*")
_LINES = re.compile(r"\s*[\r\n]+\s*")
_KEY = "config.data.options.label_path_separator"


class Cell(NamedTuple):
    """What a row says about the path of its label."""

    where: str  # name of the row in messages
    label: str  # as people say it
    value: Any  # text, or a list of names


def read(cells: Sequence[Cell], separator: str = "") -> list[list[str]]:
    """Reads the label paths of all rows; each ends in the row's label.

    Args:
      separator: what stands between the names; "" finds it.

    Raises:
      ValueError: a path is no text and no list, runs from the label to the most general name, or
        may be read in several ways. Names the row.
    """
    values = [_unpacked(cell, separator) for cell in cells]
    texts = [(c, v) for c, v in zip(cells, values, strict=True) if isinstance(v, str) and v.strip()]
    if not separator and texts:
        separator = _find_separator(texts)
    split = [
        [part for part in (v.split(separator) if separator else [v])] if isinstance(v, str) else v
        for v in values
    ]
    raw = [tuple(p.strip() for p in parts if p.strip()) for parts in split]
    said = label_names.clean_paths(raw)
    paths = [_ending(cell, said[parts]) for cell, parts in zip(cells, raw, strict=True)]
    _check_direction(cells, paths)
    return paths


def _unpacked(cell: Cell, separator: str) -> str | list[str]:
    """Returns a list where the cell holds one, or the text of one; else the text."""
    value = cell.value
    if value is None or (isinstance(value, float) and value != value):  # NaN
        return []
    if isinstance(value, str) and re.fullmatch(r"\s*[\[(].*[\])]\s*", value, re.DOTALL):
        if re.search(r"""(['"])\s+\1""", value):
            raise ValueError(
                f"{cell.where}: the label path is {value!r}, a list without commas (an array of "
                "NumPy?); write names with '>' between them"
            )
        for parse in (json.loads, ast.literal_eval):
            try:
                value = parse(value)
                break
            except (ValueError, SyntaxError, RecursionError):
                continue
    if isinstance(value, tuple):
        value = list(value)
    if isinstance(value, str):
        return value if separator else _ARROWS.sub(">", _LINES.sub(">", value.strip()))
    if not isinstance(value, list) or not all(isinstance(part, str) for part in value):
        raise ValueError(
            f"{cell.where}: the label path is {cell.value!r}; write names with '>' between them, "
            "the most general first"
        )
    return value


def _find_separator(texts: Sequence[tuple[Cell, str]]) -> str:
    """Returns the one separator that all rows can be read with; "" if every path is one name."""
    present = [s for s in (*_SURE, *_UNSURE) if any(s in text for _, text in texts)]
    if not present:
        return _rare_separator(texts)
    sure = [s for s in present if s in _SURE]
    chosen = sure[0] if len(sure) == 1 else ""
    if not sure:
        ends = {s: sum(_holds(cell, text.split(s)) for cell, text in texts) for s in present}
        best = max(present, key=ends.get)
        rivals = [s for s in present if s != best and ends[s] == ends[best]]
        chosen = best if ends[best] and not rivals else ""
    odd = next(
        ((c, t) for c, t in texts if chosen not in t and any(s in t for s in present)),
        texts[0] if not chosen else None,
    )
    if not chosen or odd:
        cell, text = odd
        raise ValueError(
            f"{cell.where}: the label path {text!r} may be read in several ways (of this table's "
            f"paths some have {' and '.join(map(repr, present))}); write '>' between the names, "
            f"or set {_KEY}"
        )
    if chosen != ">":
        logging.info("label paths are read with %r between the names (%s)", chosen, _KEY)
    return chosen


def _rare_separator(texts: Sequence[tuple[Cell, str]]) -> str:
    """Returns what separates the names where only the label in its own path tells; "" for nothing.

    Raises:
      ValueError: a path is one name that ends in the label, or that holds it beside a mark.
    """
    for mark in _RARE:
        if all(mark in text and _key(text.split(mark)[-1]) == _key(c.label) for c, text in texts):
            logging.info("label paths are read with %r between the names (%s)", mark, _KEY)
            return mark
    for cell, text in texts:
        label, path = re.escape(_key(cell.label)), _key(text)
        if path != label and re.search(rf"\W{label}$|(^|\W){label}\s*[^\w\s-]|_{label}$", path):
            raise ValueError(
                f"{cell.where}: the label path {text!r} holds the label {cell.label!r}, but "
                f"nothing says what separates the names; write '>' between them, or set {_KEY}"
            )
    return ""


def _holds(cell: Cell, parts: Sequence[str]) -> bool:
    """Tells whether the label is one of several names."""
    keys = [_key(part) for part in parts]
    return len(keys) > 1 and _key(cell.label) in keys


def _key(name: str) -> str:
    return label_names.tidy(re.sub(r"^\s*\d+\s*[._)\-]\s*", "", name)).casefold()


def _ending(cell: Cell, names: list[str]) -> list[str]:
    """Returns the path with the label at its end.

    Raises:
      ValueError: the label stands elsewhere in it.
    """
    keys = [_key(name) for name in names]
    label = _key(cell.label)
    if keys and keys[-1] == label:
        return [*names[:-1], cell.label]
    if label in keys:
        raise ValueError(
            f"{cell.where}: the label {cell.label!r} stands in its own label path {names}, but not "
            "at the end; write the most general name first and the label last"
        )
    return [*names, cell.label]


def _check_direction(cells: Sequence[Cell], paths: Sequence[Sequence[str]]) -> None:
    """Refuses paths that run from the special to the general, or one this way and one that.

    In a tree a name has one name above it, so there are at most as many first names as last ones.
    """
    above: dict[tuple[str, str], str] = {}
    for cell, path in zip(cells, paths, strict=True):
        for upper, lower in zip(path[:-2], path[1:-1], strict=False):
            above.setdefault((upper, lower), cell.where)
            if upper != lower and (lower, upper) in above:
                raise ValueError(
                    f"{cell.where}: the label path has {upper!r} above {lower!r}, but "
                    f"{above[lower, upper]} has them the other way round; write the most general "
                    "name first"
                )
    inner = [(c, path[:-1]) for c, path in zip(cells, paths, strict=True) if len(path) > 2]
    firsts, lasts = ({path[end] for _, path in inner} for end in (0, -1))
    if len(firsts) > len(lasts):
        cell, path = inner[0]
        raise ValueError(
            f"{cell.where}: the label paths seem to run from the special to the general "
            f"({' > '.join(path)!r}; all of them end in one of {sorted(lasts)[:5]}); write the "
            "most general name first"
        )


def one_each(cells: Sequence[Cell], paths: Sequence[list[str]]) -> Mapping[str, list[str]]:
    """Returns label -> its path.

    Raises:
      ValueError: two rows give a label different paths.
    """
    found: dict[str, list[str]] = {}
    for cell, path in zip(cells, paths, strict=True):
        if found.setdefault(cell.label, path) != path:
            raise ValueError(
                f"{cell.where}: the label {cell.label!r} has the path {path}, but "
                f"{found[cell.label]} in an earlier row; give a label one path"
            )
    return found
