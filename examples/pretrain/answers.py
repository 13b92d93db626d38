"""Writes the completions that a base policy imitates: labels of mixed levels, by habit.

Each concept has a usual level, whatever the image shows. A general model before reinforcement is
like that: it often says "bird" where it could say "eagle", sometimes "eagle" where it can only see
a bird, and declines to name some things that it could name.
"""

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from speciarl_jax.verifiers.label_tree import schema

ABSTENTION = "None"
LEVELS = ("abstain", "generic", "less specific", "specific")


@dataclasses.dataclass(frozen=True)
class Concept:
    """Names what completions call a leaf of the label tree."""

    label_id: str
    name: str
    synonyms: tuple[str, ...]
    ancestors: tuple[str, ...]  # a name of each level between leaf and group, nearest first
    generic: str  # the group


def concepts(tree: Mapping[str, Any], label_ids: set[str]) -> list[Concept]:
    """Lists the leaves of a label tree that are among `label_ids`, in the order of the tree."""
    return [
        Concept(
            label_id=label_id,
            name=leaf["name"],
            synonyms=tuple(n for s in leaf.get("synonyms", ()) for n in schema.expand(s)),
            ancestors=tuple(schema.expand(names[0])[0] for names in leaf.get("ancestors", ())),
            generic=leaf["generic"],
        )
        for label_id, leaf in tree["leaves"].items()
        if label_id in label_ids
    ]


@dataclasses.dataclass(frozen=True)
class Habits:
    """Holds the habits of a base policy.

    Attributes:
      level_shares: share of concepts whose usual level is each of `LEVELS`.
      usual: probability of the concept's usual level; the other levels, but not abstain, share
        the rest.
      abstain: difficulty -> probability of declining, before any habit.
      synonym: probability of a synonym in place of the name.
      obedience: probability that a prompt of `leanings` decides the level in place of the habit.
      leanings: prompt -> probability of each of `LEVELS`, whatever the image shows.
    """

    level_shares: Sequence[float]
    usual: float
    abstain: Mapping[str, float]
    synonym: float
    obedience: float = 0.0
    leanings: Mapping[str, Sequence[float]] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        leanings = {f"leanings[{prompt!r}]": shares for prompt, shares in self.leanings.items()}
        for name, shares in {"level_shares": self.level_shares, **leanings}.items():
            if len(shares) != len(LEVELS) or not np.isclose(sum(shares), 1):
                raise ValueError(
                    f"{name} {tuple(shares)} must be {len(LEVELS)} shares that sum to 1, one for "
                    f"each of {LEVELS}"
                )


def usual_level(concept: Concept, habits: Habits) -> str:
    """Returns one of `LEVELS`, fixed for a concept; generic replaces a missing less specific."""
    digest = hashlib.sha256(f"usual level of {concept.label_id}".encode()).digest()
    u = int.from_bytes(digest[:8], "big") / 2**64
    bounds = np.cumsum(habits.level_shares)[:-1]
    level = LEVELS[int(np.searchsorted(bounds, u, side="right"))]
    return "generic" if level == "less specific" and not concept.ancestors else level


def response(
    concept: Concept,
    difficulty: str,
    habits: Habits,
    rng: np.random.Generator,
    prompt: str = "base",
) -> str:
    """Writes a completion about an image of `concept`, with tags.

    The thought names the group, the answer a label of the level that habit or prompt picks.
    """
    leaning = habits.leanings.get(prompt)
    if leaning is not None and rng.random() < habits.obedience:
        level = LEVELS[rng.choice(len(LEVELS), p=leaning)]
    else:
        usual = usual_level(concept, habits)
        others = [level for level in LEVELS[1:] if level != usual]
        level = usual if rng.random() < habits.usual else others[rng.integers(len(others))]
    if level == "abstain" or rng.random() < habits.abstain.get(difficulty, 0.0):
        return _format("It is too unclear.", ABSTENTION)
    if level == "specific":
        names = (concept.name, *concept.synonyms)
        use_synonym = len(names) > 1 and rng.random() < habits.synonym
        label = names[rng.integers(1, len(names))] if use_synonym else concept.name
    elif level == "less specific" and concept.ancestors:
        label = concept.ancestors[0]
    else:
        label = concept.generic
    return _format(f"It is some {concept.generic}.", label)


def texts(concepts: list[Concept]) -> list[str]:
    """Lists every possible completion, for training a tokenizer."""
    found = [_format("It is too unclear.", ABSTENTION)]
    for concept in concepts:
        labels = [concept.name, *concept.synonyms, *concept.ancestors, concept.generic]
        found += [_format(f"It is some {concept.generic}.", label) for label in labels]
    return found


def _format(thought: str, label: str) -> str:
    return f"<think>{thought}</think> <answer>{label}</answer>"
