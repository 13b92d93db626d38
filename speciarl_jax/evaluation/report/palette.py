"""Colours, marks and names of categories and policies, the same in every figure and on the page.

The correct categories go from light to dark blue and violet, wrong is vermilion, an abstention
amber, and what has no verdict grey: apart for the common kinds of colour blindness, by lightness
where the hue does not tell. A mark always stands beside a colour.
"""

from typing import NamedTuple

from speciarl_jax.evaluation.predictions import UNVERIFIED
from speciarl_jax.verifiers.category import Category

# Stands for the verdict of an answer that has none.


class Look(NamedTuple):
    """How a category is shown: its mark, its colour, and a colour that can be read on it."""

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
# From the best down, as people read them; what has no verdict comes last.
ORDER = tuple(CATEGORIES)
RANK = {c.name.lower(): int(c) for c in Category}

# Of policies: colour, dash pattern and marker of matplotlib. The first is the base.
POLICIES = (
    ("#77797f", "4 3", "o"),
    ("#00836c", "", "s"),
    ("#b0457b", "7 2", "^"),
    ("#8a6d00", "2 2", "D"),
    ("#3d4ec6", "9 3 2 3", "v"),
    ("#a33a00", "5 2 1 2", "P"),
)
# The same hues on a dark page.
POLICIES_IN_DARK = ("#a4a7ad", "#4ac2a8", "#e58ab5", "#d1b44a", "#98a4ff", "#f0956a")


def policy_look(number: int) -> tuple[str, str, str]:
    """Colour, dash pattern and marker of the policy of this number."""
    return POLICIES[number % len(POLICIES)]


def name(category: str) -> str:
    """As people read it."""
    return category.replace("_", " ")
