"""Adds to the tables of FGVC Aircraft a maker or family with a role: "Fokker turboprop".

`fgvc_aircraft.tsv` and `fgvc_aircraft_nodes.tsv` are read as they are. Where a maker or a family,
and a role, stand above the same class, a node of both does too, if it holds for few enough classes
to say something; a broader role behind a maker ("Boeing airliner") is left to the matcher.
"""

import functools
import itertools

from scripts import build_label_trees as build
from speciarl_jax.verifiers.label_tree import schema

MAKERS = (
    *("Boeing", "Airbus", "Antonov", "British Aerospace", "Beechcraft", "Lockheed", "Douglas"),
    *("McDonnell Douglas", "General Dynamics", "Northrop", "Bombardier", "Canadair", "Cessna"),
    *("de Havilland", "de Havilland Canada", "Robin", "Dornier", "Fairchild Dornier", "Fairchild"),
    *("Swearingen", "Embraer", "Dassault Falcon", "Fokker", "Gulfstream", "Ilyushin", "Piper"),
    *("Cirrus", "Saab", "Supermarine", "Panavia", "Tupolev", "Yakovlev", "Hawker Siddeley"),
)
FAMILIES = (
    *("707", "727", "747", "767", "777", "A300", "A330", "A340", "ATR", "BAE 146", "Dash 8", "CRJ"),
    *("ERJ", "E-Jet", "King Air", "F-16", "Hawk", "Challenger", "Cessna Citation", "DC-9"),
)
ROLES = (
    *(
        "wide-body airliner",
        "narrow-body airliner",
        "trijet",
        "four-engine jet",
        "four-engine airliner",
    ),
    *("jumbo jet", "twinjet airliner", "trijet airliner", "large airliner", "regional airliner"),
    *("regional jet", "turboprop", "twin-engine turboprop", "four-engine turboprop"),
    *("single-engine turboprop", "regional turboprop", "single-engine propeller plane"),
    *("business jet", "light jet", "light aircraft", "single-engine light aircraft"),
    *("general aviation aircraft", "small airplane", "utility aircraft", "single-engine aircraft"),
    *("trainer", "military trainer", "jet trainer", "biplane", "propliner", "piston aircraft"),
    *("vintage aircraft", "military aircraft", "military transport", "cargo plane", "fighter"),
    *("fighter jet", "military jet", "multirole fighter", "attack aircraft"),
    *("World War II aircraft", "World War II fighter"),
)
# How many names of a maker, a family and a role are joined.
MAKER_NAMES, FAMILY_NAMES, ROLE_NAMES = 2, 4, 10
MAX_WORDS, MAX_BYTES = 8, 60


@functools.cache
def _tables():
    """The classes and the nodes as the tables have them, and the joint nodes of each class."""
    found = build.cells(build.TABLES / "fgvc_aircraft.tsv", build.LEAF_HEADER)
    leaves = [build.Leaf(first, name, *map(build.parts, lists)) for first, name, *lists in found]
    found = build.cells(build.TABLES / "fgvc_aircraft_nodes.tsv", build.NODE_HEADER)
    nodes = {
        node: build.Node([node, *build.parts(names)], build.parts(above), rank)
        for node, names, above, rank in found
    }
    joint = {}
    for leaf in leaves:
        above = build.ancestry("fgvc_aircraft", leaf, nodes)
        pairs = itertools.product((*MAKERS, *FAMILIES), ROLES)
        joint[leaf.class_name] = [p for p in pairs if p[0] in above and p[1] in above]
    return leaves, nodes, joint


def _first(names: list[str], most: int) -> list[str]:
    """The first names, their alternatives written out."""
    return list(dict.fromkeys(one for name in names for one in schema.expand(name)))[:most]


def rows() -> list[tuple[str, str, list[str], list[str], list[str]]]:
    """The classes: class, name, synonyms, forms, ids of the nodes directly above."""
    leaves, _, joint = _tables()
    return [(*leaf[:4], [*leaf.above, *map(" ".join, joint[leaf.class_name])]) for leaf in leaves]


def nodes() -> list[tuple[str, list[str], list[str], str]]:
    """The nodes above the classes: id, other names, ids of the nodes directly above, rank."""
    _, nodes, joint = _tables()
    found = [(node, names[1:], above, rank) for node, (names, above, rank) in nodes.items()]
    for maker, role in dict.fromkeys(itertools.chain.from_iterable(joint.values())):
        most = MAKER_NAMES if maker in MAKERS else FAMILY_NAMES
        makers, roles = _first(nodes[maker].names, most), _first(nodes[role].names, ROLE_NAMES)
        names = [f"{one} {other}" for one in makers for other in roles]
        fit = [
            n
            for n in names
            if len(n) <= MAX_BYTES and len(n.replace("-", " ").split()) <= MAX_WORDS
        ]
        found.append((f"{maker} {role}", fit[1:], [maker, role], ""))
    return found
