"""How correct and how specific a set of answers is."""

import dataclasses
from collections.abc import Mapping

import numpy as np

from speciarl_jax.verifiers.category import Category

CORRECT = (Category.GENERIC, Category.LESS_SPECIFIC, Category.SPECIFIC, Category.MORE_SPECIFIC)


@dataclasses.dataclass(frozen=True)
class Score:
    """What a set of answers is worth.

    Attributes:
      correctness: share of answers that are neither wrong, abstained nor unparsed.
      specificity: mean weight of the correct answers; 0 when there is none.
      hm: harmonic mean of the two; 0 when either is.
      histogram: number of answers in each category, by its lower-case name.
    """

    correctness: float
    specificity: float
    hm: float
    histogram: dict[str, int]


def check_weights(weights: Mapping[str, float]) -> None:
    """Refuses weights of specificity that `score` cannot use.

    Raises:
      ValueError: a category is missing or unknown, or a weight lies outside of [0, 1].
    """
    names = [category.name.lower() for category in CORRECT]
    if sorted(weights) != sorted(names) or not all(0 <= w <= 1 for w in weights.values()):
        raise ValueError(
            f"weights of specificity (config.evaluation.weights) must be numbers in [0, 1] for "
            f"{names}, got {dict(weights)}"
        )


def score(categories: np.ndarray, weights: Mapping[str, float]) -> Score:
    """Scores verdicts, one an answer.

    The paper reports correctness, specificity and their harmonic mean (arXiv 2603.03197,
    section 4); the weights of the categories are the caller's.

    Args:
      categories: int array of `Category` values, any shape; leave out answers without a verdict.
      weights: for "generic", "less_specific", "specific" and "more_specific", in [0, 1].

    Raises:
      ValueError: no answers, a number that is no category, or weights that do not fit.
    """
    categories = np.asarray(categories).ravel()
    if categories.size == 0:
        raise ValueError("there are no answers to score; is the evaluation set empty?")
    check_weights(weights)
    names = [category.name.lower() for category in CORRECT]
    unknown = sorted(set(categories.tolist()) - {int(c) for c in Category})
    if unknown:
        raise ValueError(f"{unknown} are no categories; see verifiers/category.py")
    histogram = {c.name.lower(): int(np.sum(categories == c)) for c in Category}
    correct = sum(histogram[name] for name in names)
    correctness = correct / categories.size
    weighted = sum(weights[name] * histogram[name] for name in names)
    specificity = weighted / correct if correct else 0.0
    total = correctness + specificity
    hm = 2 * correctness * specificity / total if total else 0.0
    return Score(correctness, specificity, hm, histogram)


def best_of_n(categories_BN: np.ndarray) -> np.ndarray:
    """The best verdict of each group, int [B]: what the policy could have said."""
    return np.max(np.asarray(categories_BN), axis=1)
