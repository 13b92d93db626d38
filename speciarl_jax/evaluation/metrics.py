"""Scores how correct and how specific a set of answers is."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from speciarl_jax.verifiers.category import Category

MEASURES = ("correctness", "specificity", "hm")
CORRECT = (Category.GENERIC, Category.LESS_SPECIFIC, Category.SPECIFIC, Category.MORE_SPECIFIC)
_NAMES = tuple(category.name.lower() for category in CORRECT)
# Weights of specificity by name (`config.evaluation.weights.preset`): even steps, which the
# configuration has by default, and those of the code that the authors of the paper released.
PRESETS = {
    "thirds": dict(zip(_NAMES, (1 / 3, 2 / 3, 1.0, 1.0), strict=True)),
    "authors": dict(zip(_NAMES, (0.2, 0.6, 1.0, 1.0), strict=True)),
}


@dataclasses.dataclass(frozen=True)
class Score:
    """Scores of a set of answers."""

    correctness: float  # share of answers that are neither wrong, abstained nor unparsed
    specificity: float  # mean weight of the correct answers; 0 when there is none
    hm: float  # harmonic mean of the two; 0 when either is
    histogram: dict[str, int]  # number of answers in each category, by its lower-case name


def check_weights(weights: Mapping[str, float]) -> None:
    """Checks weights of specificity.

    Raises:
      ValueError: a category is missing or unknown, or a weight lies outside of [0, 1].
    """
    if sorted(weights) != sorted(_NAMES) or not all(0 <= w <= 1 for w in weights.values()):
        raise ValueError(
            f"weights of specificity (config.evaluation.weights) must be numbers in [0, 1] for "
            f"{list(_NAMES)}, got {dict(weights)}"
        )


def configured_weights(section: Mapping[str, Any]) -> dict[str, float]:
    """Returns the weights that `config.evaluation.weights` asks for: its preset, or its numbers.

    Raises:
      ValueError: there is no such preset, or the numbers do not fit.
    """
    preset = section["preset"]
    if preset and preset not in PRESETS:
        raise ValueError(
            f"config.evaluation.weights.preset is {preset!r}; choose one of {sorted(PRESETS)}, or "
            "'' for the numbers beside it"
        )
    numbers = PRESETS.get(preset) or {k: v for k, v in section.items() if k != "preset"}
    check_weights(numbers)
    return dict(numbers)


def named_weights(weights: Mapping[str, float]) -> dict[str, Any]:
    """Adds "name" to weights: the preset that has these numbers, or "custom"."""
    numbers = numbers_of(weights)
    names = (name for name, preset in PRESETS.items() if preset == numbers)
    return numbers | {"name": next(names, "custom")}


def numbers_of(weights: Mapping[str, Any]) -> dict[str, float]:
    """Returns the numbers of "weights" in `metrics.json`, which also has their name."""
    return {name: value for name, value in weights.items() if name != "name"}


def describe_weights(weights: Mapping[str, Any]) -> str:
    """Writes a line about weights: name and numbers."""
    named = named_weights(weights)
    numbers = (f"{k.replace('_', ' ')} {named[k]:.3g}" for k in _NAMES if k in named)
    return f"Weights of specificity: {named['name']} ({', '.join(numbers)})."


def score(categories: np.ndarray, weights: Mapping[str, float]) -> Score:
    """Scores verdicts by the measures of the paper (arXiv 2603.03197, section 4).

    The paper does not state the weights of the categories, so the caller gives them.

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
    unknown = sorted(set(categories.tolist()) - {int(c) for c in Category})
    if unknown:
        raise ValueError(f"{unknown} are no categories; see verifiers/category.py")
    counts_K = histogram(categories)
    found = {name: float(value) for name, value in measures(counts_K, weights).items()}
    names = (category.name.lower() for category in Category)
    return Score(**found, histogram=dict(zip(names, counts_K.tolist(), strict=True)))


def measures(counts_RK: np.ndarray, weights: Mapping[str, float]) -> dict[str, np.ndarray]:
    """Computes the measures of many sets of answers at once.

    Args:
      counts_RK: int or float [..., 7], how many answers have each `Category` from UNPARSED up; may
        be expected counts.
      weights: as for `score`.

    Returns:
      Each of `MEASURES` -> float64 [...]; 0 where it is not defined.
    """
    counts_RK = np.asarray(counts_RK, np.float64)
    # Python's sums have a fixed order: the same numbers on every machine.
    correct = sum(counts_RK[..., c - min(Category)] for c in CORRECT)
    worth = sum(counts_RK[..., c - min(Category)] * weights[c.name.lower()] for c in CORRECT)
    correctness = _ratio(correct, counts_RK.sum(axis=-1))
    specificity = _ratio(worth, correct)
    hm = _ratio(2 * correctness * specificity, correctness + specificity)
    return dict(zip(MEASURES, (correctness, specificity, hm), strict=True))


def _ratio(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    return np.divide(above, below, out=np.zeros_like(above), where=below > 0)


def histogram(categories: np.ndarray) -> np.ndarray:
    """Counts each category from UNPARSED up, int [7]."""
    return np.bincount(np.asarray(categories).ravel() - min(Category), minlength=len(Category))
