"""Adds to the tables of FGVC Aircraft what people say of a maker and a role: "Fokker turboprop".

`fgvc_aircraft.tsv` and `fgvc_aircraft_nodes.tsv` are read as they are. Where a maker and a role
stand above the same class, a node of both does too, if it holds for few enough classes to say
something; a broader role behind a maker ("Boeing airliner") is left to the matcher.
"""

import functools
import itertools

from scripts import build_label_trees as build

MAKERS = (
    *("Boeing", "Airbus", "Antonov", "British Aerospace", "Beechcraft", "Lockheed", "Douglas"),
    *("McDonnell Douglas", "General Dynamics", "Northrop", "Bombardier", "Canadair", "Cessna"),
    *("de Havilland", "de Havilland Canada", "Robin", "Dornier", "Fairchild Dornier", "Fairchild"),
    *("Swearingen", "Embraer", "Dassault Falcon", "Fokker", "Gulfstream", "Ilyushin", "Piper"),
    *("Cirrus", "Saab", "Supermarine", "Panavia", "Tupolev", "Yakovlev", "Hawker Siddeley"),
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
# How many names of a maker and of a role are joined.
MAKER_NAMES, ROLE_NAMES = 2, 10
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
        pairs = itertools.product(MAKERS, ROLES)
        joint[leaf.class_name] = [p for p in pairs if p[0] in above and p[1] in above]
    return leaves, nodes, joint


def rows() -> list[tuple[str, str, list[str], list[str], list[str]]]:
    """The classes: class, name, synonyms, forms, ids of the nodes directly above."""
    leaves, _, joint = _tables()
    return [(*leaf[:4], [*leaf.above, *map(" ".join, joint[leaf.class_name])]) for leaf in leaves]


def nodes() -> list[tuple[str, list[str], list[str], str]]:
    """The nodes above the classes: id, other names, ids of the nodes directly above, rank."""
    _, nodes, joint = _tables()
    found = [(node, names[1:], above, rank) for node, (names, above, rank) in nodes.items()]
    for maker, role in dict.fromkeys(itertools.chain.from_iterable(joint.values())):
        # Without the names in brackets, which are spellings of one.
        makers = [n for n in nodes[maker].names if "[" not in n][:MAKER_NAMES]
        roles = [n for n in nodes[role].names if "[" not in n][:ROLE_NAMES]
        names = [f"{one} {other}" for one in makers for other in roles]
        fit = [
            n
            for n in names
            if len(n) <= MAX_BYTES and len(n.replace("-", " ").split()) <= MAX_WORDS
        ]
        found.append((f"{maker} {role}", fit[1:], [maker, role], ""))
    return found
