"""Colours, marks and names of categories and policies, the same in every figure and on the page.

The correct categories go from light to dark blue and violet. Wrong is vermilion, an abstention is
amber, and answers without a verdict are grey. Readers with the common kinds of colour blindness
can tell them apart, by lightness where the hues look alike. A mark always accompanies a colour.
"""

from typing import NamedTuple

from speciarl_jax.evaluation.predictions import UNVERIFIED
from speciarl_jax.verifiers.category import Category


class Look(NamedTuple):
    """The mark of a category, its colour, and the colour of text on it."""

    mark: str
    colour: str
    on: str


CATEGORIES = {
    "more_specific": Look("S+", "#6a4fb3", "#ffffff"),
    "specific": Look("S", "#1f6fb2", "#ffffff"),
    "less_specific": Look("S−", "#63aede", "#0b1a26"),
    "generic": Look("G", "#b9dcf2", "#0b1a26"),
    "abstain": Look("A", "#e3b23c", "#241a00"),
    "wrong": Look("W", "#c8501e", "#ffffff"),
    "unparsed": Look("U", "#5c5f66", "#ffffff"),
    UNVERIFIED: Look("?", "#b4b7bd", "#16181c"),
}
# From the best category down; answers without a verdict come last.
ORDER = tuple(CATEGORIES)
RANK = {c.name.lower(): int(c) for c in Category}


class PolicyLook(NamedTuple):
    """The colour of a policy, its dashes (in line widths), its marker, and the marker as text."""

    colour: str
    dashes: tuple[float, ...]
    marker: str
    sign: str


POLICIES = (  # The first is the base.
    PolicyLook("#77797f", (2, 1.5), "o", "●"),
    PolicyLook("#00836c", (), "s", "■"),
    PolicyLook("#b0457b", (3.5, 1), "^", "▲"),
    PolicyLook("#8a6d00", (1, 1), "D", "◆"),
    PolicyLook("#3d4ec6", (4.5, 1.5, 1, 1.5), "v", "▼"),
    PolicyLook("#a33a00", (2.5, 1, 0.5, 1), "P", "✚"),
)

# CSS variable -> colour on a light page, and on a dark page where it differs.
LIGHT = {
    "paper": "#fbfaf7",
    "ink": "#1b1d21",
    "ink-2": "#51555d",
    "ink-3": "#747983",
    "rule-2": "#eceae4",
    "accent": "#00705c",
    **{f"policy-{i}": look.colour for i, look in enumerate(POLICIES)},
    **{name: look.colour for name, look in CATEGORIES.items()},
    **{f"on-{name}": look.on for name, look in CATEGORIES.items()},
}
DARK = {
    "paper": "#15171a",
    "ink": "#e9e7e2",
    "ink-2": "#b3b5ba",
    "ink-3": "#8f939b",
    "rule-2": "#282c31",
    "accent": "#4ac2a8",
    **{
        f"policy-{i}": colour
        for i, colour in enumerate(
            ("#a4a7ad", "#4ac2a8", "#e58ab5", "#d1b44a", "#98a4ff", "#f0956a")
        )
    },
}


def policy_look(number: int) -> PolicyLook:
    """Returns the look of the policy of this number."""
    return POLICIES[number % len(POLICIES)]


def name(category: str) -> str:
    """Returns the name of a category as people read it."""
    return "unjudged" if category == UNVERIFIED else category.replace("_", " ")
