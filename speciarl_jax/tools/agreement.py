"""How far two series of verdicts agree: confusion matrix, Cohen's kappa, precision and recall."""

from typing import NamedTuple

import numpy as np

from speciarl_jax.verifiers.category import Category

NAMES = tuple(c.name.lower() for c in Category)


class Agreement(NamedTuple):
    """Agreement of verdicts with a reference.

    Attributes:
      matrix: int [7, 7], rows by the reference and columns by the other, in the order of `NAMES`.
      accuracy: share of equal verdicts.
      kappa: agreement beyond chance (Cohen, Educ. Psychol. Meas. 20, 1960); NaN where chance alone
        would agree throughout.
      precision: float [7], share of a verdict that the reference shares; NaN if never given.
      recall: float [7], share of a category of the reference that is found; NaN if it has none.
    """

    matrix: np.ndarray
    accuracy: float
    kappa: float
    precision: np.ndarray
    recall: np.ndarray


def agreement(reference: np.ndarray, other: np.ndarray) -> Agreement:
    """Compares verdicts, one for each pair of names.

    Args:
      reference: int `Category`.
      other: int `Category`, of the same length.

    Raises:
      ValueError: the lengths differ, or there is nothing to compare.
    """
    reference, other = np.asarray(reference), np.asarray(other)
    if reference.shape != other.shape or not reference.size:
        raise ValueError(
            f"{reference.size} verdicts cannot be compared with {other.size}; both must judge the "
            "same pairs, at least one"
        )
    first = min(Category)
    matrix = np.zeros((len(NAMES),) * 2, int)
    np.add.at(matrix, (reference - first, other - first), 1)
    total, equal = matrix.sum(), np.diag(matrix)
    accuracy = equal.sum() / total
    chance = (matrix.sum(0) @ matrix.sum(1)) / total**2
    with np.errstate(invalid="ignore", divide="ignore"):
        kappa = np.float64(accuracy - chance) / (1 - chance)
        precision, recall = equal / matrix.sum(0), equal / matrix.sum(1)
    return Agreement(matrix, float(accuracy), float(kappa), precision, recall)


def table(found: Agreement, rows: str, columns: str) -> str:
    """The confusion matrix and the figures as text, without categories that nobody gave."""
    used = [i for i in range(len(NAMES)) if found.matrix[i].any() or found.matrix[:, i].any()]
    short = {i: NAMES[i].replace("_", " ") for i in used}
    width = max(map(len, [*short.values(), rows]))
    lines = [f"rows: {rows}, columns: {columns}"]
    head = [*short.values(), "recall"]
    lines.append(" " * width + "".join(f"  {name:>13}" for name in head))
    for i in used:
        cells = [f"{found.matrix[i, j]:13d}" for j in used] + [f"{found.recall[i]:13.3f}"]
        lines.append(f"{short[i]:{width}}" + "".join(f"  {cell}" for cell in cells))
    cells = "".join(f"  {found.precision[j]:13.3f}" for j in used)
    lines.append(f"{'precision':{width}}" + cells)
    total = int(found.matrix.sum())
    lines.append(f"{total} pairs, equal {found.accuracy:.3f}, Cohen's kappa {found.kappa:.3f}")
    return "\n".join(lines)
