"""What a base policy is taught to say: labels of mixed levels, by habit and not by ability.

Each concept has a level it is usually called by, whatever the picture shows. That is the state of a
general model before reinforcement: it often says "bird" where it could say "eagle", sometimes
"eagle" where it can only see a bird, and declines now and then.
"""

import dataclasses
import hashlib

import numpy as np

from speciarl_jax.data.emoji import Concept

ABSTENTION = "None"
LEVELS = ("generic", "less specific", "specific")


@dataclasses.dataclass(frozen=True)
class Habits:
    """How a base policy talks.

    Attributes:
      level_shares: share of concepts whose usual level is generic, less specific, specific.
      usual: probability that an answer is of the concept's usual level; the other two share the
        rest.
      abstain: probability of declining at each difficulty.
      synonym: probability of a synonym in place of the name.
    """

    level_shares: tuple[float, float, float]
    usual: float
    abstain: dict[str, float]
    synonym: float

    def __post_init__(self):
        if len(self.level_shares) != len(LEVELS) or not np.isclose(sum(self.level_shares), 1):
            raise ValueError(
                f"level_shares {self.level_shares} must be {len(LEVELS)} shares that sum to 1"
            )


def usual_level(concept: Concept, habits: Habits) -> int:
    """Index into `LEVELS`, fixed for a concept. A concept without ancestors skips that level."""
    digest = hashlib.sha256(f"usual level of {concept.label_id}".encode()).digest()
    u = int.from_bytes(digest[:8], "big") / 2**64
    level = int(np.searchsorted(np.cumsum(habits.level_shares)[:-1], u, side="right"))
    return 0 if level == 1 and not concept.ancestors else level


def response(concept: Concept, difficulty: str, habits: Habits, rng: np.random.Generator) -> str:
    """A response about a picture of `concept`, tags included.

    The thought names the group, the answer a label of the level that habit picks.
    """
    if rng.random() < habits.abstain.get(difficulty, 0.0):
        return _format("It is too unclear.", ABSTENTION)
    usual = usual_level(concept, habits)
    rest = (1 - habits.usual) / 2
    level = int(rng.choice(3, p=[habits.usual if i == usual else rest for i in range(3)]))
    if level == 2:
        names = (concept.name, *concept.synonyms)
        use_synonym = len(names) > 1 and rng.random() < habits.synonym
        label = names[rng.integers(1, len(names))] if use_synonym else concept.name
    elif level == 1 and concept.ancestors:
        label = concept.ancestors[0]
    else:
        label = concept.generic
    return _format(f"It is some {concept.generic}.", label)


def texts(concepts: list[Concept]) -> list[str]:
    """Every response there can be, for training a tokenizer."""
    found = [_format("It is too unclear.", ABSTENTION)]
    for concept in concepts:
        labels = [concept.name, *concept.synonyms, *concept.ancestors, concept.generic]
        found += [_format(f"It is some {concept.generic}.", label) for label in labels]
    return found


def _format(thought: str, label: str) -> str:
    return f"<think>{thought}</think> <answer>{label}</answer>"
