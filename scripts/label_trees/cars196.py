"""Makes the names of Stanford Cars, too many to be written out, from four short tables.

`cars196.tsv` says what is true of each class, `cars196_makes.tsv`, `cars196_bodies.tsv` and
`cars196_tags.tsv` how people say it. A name here is a string of parts: make, model, body, year and
so on, in the orders in which people write them. Each class claims the names that are true of it:

- `FULL`: make, model, body and year. Right for this class, wrong for any other.
- `OWN`: the model and a body or year. Right where no other class can be meant.
- `FORM`: the same with a trim or an engine. A form of the class where no other can be meant.
- `WIDE`: anything less. A name of what is above the class.

What several classes claim becomes the name of a node above them, one node a set of classes.
"""

import functools
import itertools
import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence

from scripts.label_trees.alternatives import joined
from scripts.label_trees.cars196_tables import Car, Model, parts, tables
from speciarl_jax.verifiers import parsing
from speciarl_jax.verifiers.label_tree import schema

GROUP = "car"
GROUP_NAMES = (
    "automobile; vehicle; motor vehicle; motor car; motorcar; auto; motorized vehicle; transport; "
    "car model; model; vehicle model; land vehicle; road vehicle; four-wheeled vehicle; "
    "transportation; means of transport"
).split("; ")
# A little less than the 64 bytes of an answer, as plurals are longer.
MAX_BYTES, MAX_WORDS = 62, 8
FULL, OWN, FORM, WIDE = range(4)
_ORDINALS = dict(
    zip(
        "1st 2nd 3rd 4th 5th 6th 7th 8th 9th 10th 11th 12th".split(),
        "first second third fourth fifth sixth seventh eighth ninth tenth eleventh twelfth".split(),
        strict=True,
    )
)
_COUNTRIES = {
    "American": ["American", "US"],
    "South Korean": ["Korean", "South Korean", "Asian"],
    "Japanese": ["Japanese", "Asian"],
    "British": ["British", "English", "UK", "European"],
    **{one: [one, "European"] for one in ("German", "Italian", "French", "Swedish", "Dutch")},
}
_PARENTS = {"GM": ["General Motors", "GM", "[General Motors|GM] [car|vehicle|automobile]"]}
# What people put behind a make or a country ("German luxury car").
_WITH_MAKE = "luxury sports hybrid electric performance supercar muscle compact midsize".split()


def _any(names: Sequence[str]) -> str:
    """One of the names, as alternatives."""
    names = list(dict.fromkeys(names))
    return names[0] if len(names) == 1 else f"[{'|'.join(names)}]"


def _plain(text: str) -> str:
    """Letters, digits and list marks: names that differ in the rest are one name to the matcher."""
    marks = parsing.LIST_MARKS.decode()
    plain = unicodedata.normalize("NFD", text.lower()).translate(str.maketrans(marks, "," * 5))
    return "".join(c for c in plain if c.isalnum() or c == ",")


def _orders(*parts: str) -> Iterator[str]:
    return map(" ".join, itertools.permutations(parts))


def _named(make: Sequence[str], model: Model) -> list[str]:
    """The model with its make, and without it where it is a name alone."""
    both = [n for n in model.with_make if n in model.alone]
    need = [n for n in model.with_make if n not in model.alone]
    bare = [n for n in model.alone if n not in model.with_make]
    found = [f"{_any(make)} {_any(need)}"] if need else []
    found += [f"{_any([*make, ''])} {_any(both)}"] if both else []
    return found + ([_any(bare)] if bare else [])


def _of_model(
    make: Sequence[str], model: Model, year: str = "", body: Sequence[str] = ()
) -> Iterator[str]:
    """Make and model with a year, a body or both, in every order in which one might write them."""
    said = [year] if year else []
    for named in _named(make, model):
        if body:
            yield from _orders(f"{named} {_any(body)}", *said)
        # Rare orders with the usual words alone, or names would be too many.
        short = [_any(body[:2])] if body else []
        yield from _orders(named, *said, *short)
        # "Toyota Corolla sedan, 2012"
        yield from (" ".join([named, *short]) + f", {one}" for one in said)
    # The make apart from the model ("2012 BMW convertible 1 Series"), and behind it.
    if model.with_make:
        name, rest = model.with_make[0], [*said, *body[:1]]
        for order in itertools.permutations([make[0], *rest, name]):
            if order.index(name) > order.index(make[0]) + 1:
                yield " ".join(order)
        yield from _orders(f"{name} {make[0]}", *rest)
        # "Malibu 2010 hybrid"
        first, _, last = name.rpartition(" ")
        if first and year:
            yield f"{_any([*make, ''])} {first} {' '.join([*said, last, *body[:1]])}"


def _trimmed(named: str, trim: str, body: str = "", year: str = "") -> Iterator[str]:
    """A model with a trim behind it or behind the body, and a year at an end or before the trim."""
    middles = [f"{named} {trim} {body}", f"{named} {body} {trim}"] if body else [f"{named} {trim}"]
    for middle in middles:
        yield from (f"{year} {middle}", f"{middle}[,|] {year}") if year else (middle,)
    if year:
        yield f"{named} {year} {trim} {body}".rstrip()


def _generations(car: Car) -> list[str]:
    """Its generations as one choice, in a list that is empty if the table has none."""
    found = []
    for one in car.generations:
        ordinal = f"[{one}|{_ORDINALS.get(one)}] [gen|generation]"
        found += schema.expand(ordinal) if one in _ORDINALS else one.split("|")
    return [_any(found)] if found else []


def _own_claims(car: Car, make: Sequence[str], words: dict) -> Iterator[tuple[int, str]]:
    """Names of exactly this model."""
    for model in car.models:
        for named in _named(make, model):
            yield OWN if model.complete and " " in named else WIDE, named
        kind = FULL if model.complete else OWN
        yield from ((kind, name) for name in _of_model(make, model, car.year))
        for body, sure in car.bodies:
            without_year = _of_model(make, model, "", words[body])
            yield from ((OWN if sure else WIDE, name) for name in without_year)
            with_year = _of_model(make, model, car.year, words[body])
            yield from ((FULL if sure else OWN, name) for name in with_year)
    yield from ((FULL, name) for name in car.extra)


def _generation_claims(car: Car, make: Sequence[str], words: dict) -> Iterator[tuple[int, str]]:
    """Names of the generation of a model, which is worth as much as its year."""
    bodies = [_any(words[body][:2]) for body, sure in car.bodies if sure]
    for model, code in itertools.product(car.models, _generations(car)):
        for named in _named(make, model):
            for body in ("", *bodies):
                yield from ((OWN, t) for t in _trimmed(named, code, body))
                yield from ((OWN, t) for t in _trimmed(named, code, body, car.year))
                yield OWN, f"{code} {named} {body}".strip()
                yield OWN, f"{car.year} {code} {named} {body}".strip()
            yield OWN, f"{code} {named} {car.year}"
        # "BMW E92 M3"
        for name in (f"{_any(make)} {code} {said}" for said in model.with_make):
            for body in ("", *bodies):
                yield OWN, f"{name} {body}".strip()
                yield from ((OWN, one) for one in _orders(f"{name} {body}".strip(), car.year))
        # "BMW E92": the makers' own codes need no model.
        codes = [c for c in schema.expand(code) if any(map(str.isdigit, c)) and c[0].isupper()]
        if codes:
            yield WIDE, f"{_any(make)} {_any(codes)}"


def _form_claims(car: Car, make: Sequence[str], words: dict) -> Iterator[tuple[int, str]]:
    """Names of its trims and engines."""
    bodies = [_any(words[body][:3]) for body, sure in car.bodies if sure]
    for model in car.variants:
        for named in _named(make, model):
            yield FORM if model.complete else WIDE, named
            yield from ((FORM, t) for t in _orders(named, car.year))
            for body in bodies:
                yield from ((FORM, t) for t in _orders(named, body))
                yield from ((FORM, t) for t in _orders(f"{named} {body}", car.year))
                yield FORM, f"{named} {car.year} {body}"
    for model in car.models if car.trims else ():
        for named in _named(make, model):
            alone, trim = FORM if model.complete else WIDE, _any(car.trims)
            yield from ((alone, name) for name in _trimmed(named, trim))
            yield from ((FORM, name) for name in _trimmed(named, trim, "", car.year))
            for body in bodies:
                yield from ((FORM, name) for name in _trimmed(named, trim, body))
                yield from ((FORM, name) for name in _trimmed(named, trim, body, car.year))


def _line_claims(car: Car, make: Sequence[str], words: dict) -> Iterator[str]:
    """Names of wider product lines: never enough, whatever stands beside them."""
    for model in car.lines:
        yield from _named(make, model)
        yield from _of_model(make, model, car.year)
        # A line that is complete is another car with a body: "MINI Cooper convertible".
        for body, _ in () if model.complete else car.bodies:
            yield from _of_model(make, model, "", words[body])
            yield from _of_model(make, model, car.year, words[body])
        for named, code in itertools.product(_named(make, model), _generations(car)):
            yield from _orders(named, code)


def _kind_claims(car: Car) -> Iterator[str]:
    """Names of what it is besides: make, country, body, size, use."""
    _, makes, bodies, tags = tables()
    thing = "[car|vehicle|automobile]"
    words = {b: _any(parts(bodies[b][0]) or [b]) for b, _ in car.bodies}
    for body, said in words.items():
        yield said
        yield from parts(bodies[body][1])
        yield from (f"{car.year} {said}", f"{said} {car.year}")
    yield from (f"{car.year} {thing}", f"{thing} {car.year}")
    named = {tag: _tag_names(tags[tag], words.values(), thing) for tag in car.tags}
    with_make = [tag for tag in car.tags if tag in _WITH_MAKE]
    for tag in car.tags:
        yield from named[tag]
        yield from parts(tags[tag][1])
    for make in car.makes:
        names, alone, _, parent = makes[make]
        yield from [*parts(names), *parts(alone), *_PARENTS.get(parent, [])]
        said = _any(parts(names))
        yield from _orders(said, car.year)
        for body in words.values():
            yield from [*_orders(said, body), *_orders(said, body, car.year)]
        for tag in with_make:
            yield from (f"{parts(names)[0]} {one}" for one in named[tag])
    # "Nissan Leaf electric car"
    for model, tag in itertools.product([*car.models, *car.lines], with_make):
        make, (adjectives, alone, *_) = parts(makes[car.makes[0]][0]), map(parts, tags[tag])
        cars = schema.expand(f"{_any(adjectives)} {thing}") if adjectives else []
        said = _any([*cars, *alone[:2]])
        yield from (f"{full} {said}" for full in _named(make, model))
    for place in _COUNTRIES[makes[car.makes[0]][2]]:
        yield f"{place} [car|vehicle|automobile|auto|make|brand]"
        yield from (f"{place} {one}" for tag in with_make for one in named[tag])
        yield from (f"{place} {body}" for body in words.values())


def _tag_names(row: Sequence[str], bodies: Iterable[str], thing: str) -> list[str]:
    """A description with "car" or a body behind it; one that needs neither as it is."""
    adjectives = parts(row[0])
    if not adjectives:
        return parts(row[1])[:1]
    return [f"{_any(adjectives)} {noun}" for noun in (thing, *bodies)]


def _claims(car: Car) -> Iterator[tuple[int, str]]:
    _, makes, bodies, _ = tables()
    make = parts(makes[car.makes[0]][0])
    words = {body: parts(bodies[body][0]) or [body] for body, _ in car.bodies}
    yield FULL, _label(car)
    yield from _own_claims(car, make, words)
    yield from _generation_claims(car, make, words)
    yield from _form_claims(car, make, words)
    yield from ((WIDE, name) for name in _line_claims(car, make, words))
    if not {"pickup", "van"} & words.keys():
        yield WIDE, "passenger [car|vehicle]"
    yield from ((WIDE, name) for name in _kind_claims(car))


def _label(car: Car) -> str:
    return car.name.replace("Conv. Convertible", "Convertible")


def _fits(name: str) -> bool:
    words = re.split(r"\W+", name)
    return len(name.encode()) <= MAX_BYTES and len(words) <= MAX_WORDS


def _verdict(kinds: dict[str, int]) -> tuple[int, frozenset[str]]:
    """What a name is worth, and the classes for which it is."""
    full = [one for one, kind in kinds.items() if kind == FULL]
    if len(full) == 1:
        return OWN, frozenset(full)
    if len(kinds) == 1:
        return min(max(kind, OWN) for kind in kinds.values()), frozenset(kinds)
    return WIDE, frozenset(kinds)


@functools.cache
def _names() -> dict[tuple[int, frozenset[str]], list[str]]:
    """All names by what they are worth and for which classes, with few alternatives split up."""
    claims = defaultdict(dict)
    templates = {}
    taken = {_plain(name) for name in [GROUP, *GROUP_NAMES]}
    for car in tables()[0]:
        for kind, template in _claims(car):
            if template not in templates:
                names = [name for name in schema.expand(template) if _fits(name)]
                # The first of several spellings that the matcher takes for one.
                templates[template] = {_plain(name): name for name in reversed(names)}
            for key in templates[template].keys() - taken:
                claims[key][car.name] = min(kind, claims[key].get(car.name, WIDE))
    verdicts = {key: _verdict(kinds) for key, kinds in claims.items()}
    found, placed = defaultdict(list), set()
    for template, keys in templates.items():
        new = {key: name for key, name in keys.items() if key not in placed and key in claims}
        whole = len(new) == len(schema.expand(template))
        if new and whole and len({verdicts[key] for key in new}) == 1:
            found[verdicts[next(iter(new))]].append(template)
        else:
            for key, name in new.items():
                found[verdicts[key]].append(name)
        placed.update(new)
    return {who: joined(names) for who, names in found.items()}


@functools.cache
def _sets() -> dict[frozenset[str], tuple[str, list[str]]]:
    """Sets of classes that share names, from small to large: the node's id and its names."""
    wide = {classes: names for (kind, classes), names in _names().items() if kind == WIDE}
    return {
        classes: (schema.expand(wide[classes][0])[0], wide[classes])
        for classes in sorted(wide, key=lambda c: (len(c), sorted(c)))
    }


def _directly_above(classes: frozenset[str]) -> list[str]:
    """Nodes of the smallest sets that hold more than these classes; the group if there is none."""
    nearest: list[frozenset[str]] = []
    for other in _sets():
        if classes < other and not any(one < other for one in nearest):
            nearest.append(other)
    return [_sets()[one][0] for one in nearest] or [GROUP]


def rows() -> list[tuple[str, str, list[str], list[str], list[str]]]:
    """The classes: class, name, synonyms, forms, ids of the nodes directly above."""
    found = []
    for car in tables()[0]:
        own = frozenset([car.name])
        above = [_sets()[own][0]] if own in _sets() else _directly_above(own)
        synonyms, forms = (_names().get((kind, own), []) for kind in (OWN, FORM))
        found.append((car.name, _label(car), synonyms, forms, above))
    return found


def nodes() -> list[tuple[str, list[str], list[str], str]]:
    """The nodes above the classes: id, other names, ids of the nodes directly above, rank."""
    found = [
        (node, [name for name in names if name != node], _directly_above(classes), "")
        for classes, (node, names) in _sets().items()
    ]
    return [*found, (GROUP, GROUP_NAMES, [], "")]
