"""The six ordered verdicts of a verifier, and the outcome of an answer that has no verdict."""

import enum


class Category(enum.IntEnum):
    """How an answer relates to the true label (SpeciaRL, arXiv 2603.03197, section 3).

    The values are ordered: a larger one is the better answer. `UNPARSED` is not a verdict of the
    ordered categories; it marks an answer from which no label could be read.
    """

    UNPARSED = -1
    WRONG = 0
    ABSTAIN = 1
    GENERIC = 2
    LESS_SPECIFIC = 3
    SPECIFIC = 4
    MORE_SPECIFIC = 5
