"""Reads the tables of Stanford Cars: what is true of each class, and how people say it."""

import csv
import functools
import pathlib
from collections.abc import Iterable
from typing import NamedTuple

FOLDER = pathlib.Path(__file__).parent


class Model(NamedTuple):
    """Names of a model: with the make in front, without it; and whether they say the body too."""

    with_make: tuple[str, ...]
    alone: tuple[str, ...]
    complete: bool


class Car(NamedTuple):
    """A row of `cars196.tsv`; `bodies` are pairs of an id and whether it tells classes apart."""

    name: str
    year: str
    makes: list[str]
    models: list[Model]
    lines: list[Model]
    bodies: list[tuple[str, bool]]
    generations: list[str]
    variants: list[Model]
    trims: list[str]
    tags: list[str]
    extra: list[str]


def parts(cell: str) -> list[str]:
    """The items of a list in a cell."""
    return [part.strip() for part in cell.split(";") if part.strip()]


def _table(name: str) -> list[list[str]]:
    text = (FOLDER / f"{name}.tsv").read_text("utf-8")
    lines = [line for line in text.splitlines() if line and line[0] != "#"]
    width = lines[0].count("\t") + 1
    rows = list(csv.reader(lines[1:], delimiter="\t", quoting=csv.QUOTE_NONE))
    for row in rows:
        if len(row) != width:
            raise ValueError(f"{name}.tsv: {row} has {len(row)} cells; write {width}")
    return rows


def _above(table: dict[str, list[str]], ids: Iterable[str]) -> list[str]:
    """Ids and all that is above them, by the last column of a table."""
    found = list(dict.fromkeys(ids))
    for one in found:
        if one not in table:
            raise ValueError(f"cars196: {one!r} has no row among {sorted(table)}")
        found += [up for up in parts(table[one][-1]) if up not in found]
    return found


def _model(cell: str) -> Model:
    names = [name.strip() for name in cell.removeprefix("!").split("|")]
    return Model(
        tuple(n.lstrip("-") for n in names if n[0] != "="),
        tuple(n.lstrip("=") for n in names if n[0] != "-"),
        cell[0] == "!",
    )


@functools.cache
def tables() -> tuple[list[Car], dict, dict, dict]:
    """The classes, and the rows of makes, bodies and tags by their ids."""
    makes, bodies, tags = (
        {row[0]: row[1:] for row in _table(f"cars196_{what}")}
        for what in ("makes", "bodies", "tags")
    )
    cars = []
    for name, made, model, line, body, generation, variants, trims, tag, extra in _table("cars196"):
        sure = [b for b in parts(body) if b[0] != "~"]
        every = _above(bodies, [*sure, *(b[1:] for b in parts(body) if b[0] == "~")])
        models, lines, kinds = (list(map(_model, parts(c))) for c in (model, line, variants))
        cars.append(
            Car(
                name=name,
                year=name.split()[-1],
                makes=parts(made),
                models=models,
                lines=lines,
                bodies=[(b, b in sure) for b in every],
                generations=parts(generation),
                variants=kinds,
                trims=parts(trims),
                tags=_above(tags, parts(tag)),
                extra=parts(extra),
            )
        )
    return cars, makes, bodies, tags
