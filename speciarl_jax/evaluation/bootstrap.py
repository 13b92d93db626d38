"""Statistics of verdicts: bootstrap intervals, paired tests, best-of-n and calibration.

All measures are functions of how many images have each category. So the bootstrap (Efron and
Tibshirani, 1993) draws these counts from a multinomial distribution, without a loop over images.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from speciarl_jax.evaluation.metrics import MEASURES, histogram, measures
from speciarl_jax.verifiers.category import Category

RESAMPLES = 10_000
LEVEL = 0.95
_KINDS, _BINS = len(Category), 10


def intervals(
    categories_B: np.ndarray,
    weights: Mapping[str, float],
    *,
    level: float = LEVEL,
    seed: int = 0,
) -> dict[str, list[float]]:
    """Computes percentile bootstrap intervals over images: each of `MEASURES` -> [low, high].

    Args:
      categories_B: int `Category`, one an image; at least one.
      weights: as for `metrics.score`.
      level: share of the distribution between the ends.
    """
    counts_K = histogram(categories_B)
    rng = np.random.default_rng(seed)
    drawn_RK = rng.multinomial(counts_K.sum(), counts_K / counts_K.sum(), size=RESAMPLES)
    return {name: ends(x, level) for name, x in measures(drawn_RK, weights).items()}


def ends(values_R: np.ndarray, level: float = LEVEL) -> list[float]:
    """Returns [low, high] of the percentile interval of resampled values."""
    return np.quantile(values_R, [(1 - level) / 2, (1 + level) / 2]).tolist()


def two_sided(differences_R: np.ndarray) -> float:
    """Computes the two-sided p of resampled differences, as `paired` says."""
    tails = (np.sum(differences_R <= 0), np.sum(differences_R >= 0))
    return min(1.0, 2 * (int(min(tails)) + 1) / (len(differences_R) + 1))


def paired(
    a_B: np.ndarray,
    b_B: np.ndarray,
    weights: Mapping[str, float],
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> dict[str, dict[str, Any]]:
    """Tests b - a on the same images by a paired bootstrap.

    Images are drawn with replacement, each with both of its verdicts. The two-sided p inverts the
    interval: of the resampled differences that are at most 0, and those that are at least 0, it is
    twice the smaller share, with one added to both counts (Davison and Hinkley, 1997, section 4.2),
    at most 1.

    Args:
      a_B: int `Category` of the reference, one an image.
      b_B: int `Category`, of the same images in the same order.
      weights: as for `metrics.score`.

    Returns:
      Each of `MEASURES` -> {"value", "interval", "p"}.

    Raises:
      ValueError: the lengths differ, or there is no image.
    """
    a_B, b_B = np.asarray(a_B), np.asarray(b_B)
    if a_B.shape != b_B.shape or not a_B.size:
        raise ValueError(
            f"{a_B.size} verdicts cannot be paired with {b_B.size}; both runs must have judged the "
            "same images, at least one"
        )
    joint_KK = np.zeros((_KINDS, _KINDS), int)
    np.add.at(joint_KK, (a_B - min(Category), b_B - min(Category)), 1)
    rng = np.random.default_rng(seed)
    # Most pairs of categories never occur and need no draws.
    used = np.nonzero(joint_KK)
    drawn_RKK = np.zeros((resamples, _KINDS, _KINDS), int)
    drawn_RKK[:, *used] = rng.multinomial(a_B.size, joint_KK[used] / a_B.size, size=resamples)
    before, after = (measures(drawn_RKK.sum(axis=axis), weights) for axis in (2, 1))
    found = {}
    for name in MEASURES:
        # Rounding, as equal sums in another order differ in the last bits.
        differences = np.round(after[name] - before[name], 12)
        value = measures(joint_KK.sum(0), weights)[name] - measures(joint_KK.sum(1), weights)[name]
        found[name] = {
            "value": float(value),
            "interval": ends(differences),
            "p": two_sided(differences),
        }
    return found


def best_of(
    categories_BN: np.ndarray, weights: Mapping[str, float]
) -> list[dict[str, float | int]]:
    """Estimates the scores of the best of n answers, for n = 1, 2, 4, ... and N, from N samples.

    The best answer is that of the largest category. With the samples of an image sorted,
    x_1 <= ... <= x_N, the largest of n drawn without replacement is x_i with probability
    C(i - 1, n - 1) / C(N, n). So the expected counts of categories are exact over all subsets, and
    unbiased for n new samples, like pass@k of arXiv 2107.03374. The measures are those of the
    expected counts.

    Args:
      categories_BN: int `Category`, all with a verdict.
      weights: as for `metrics.score`.

    Returns:
      Rows {"n", "correctness", "specificity", "hm"}.
    """
    sorted_BN = np.sort(np.asarray(categories_BN), axis=1)
    total = sorted_BN.shape[1]
    # Row i: how often each category is the i-th smallest sample of an image.
    counts_NK = np.stack([histogram(sorted_BN[:, i]) for i in range(total)])
    rows = []
    for n in sizes(total):
        chance_N = np.array(
            [math.comb(i, n - 1) / math.comb(total, n) for i in range(total)], np.float64
        )
        found = measures((chance_N[:, None] * counts_NK).sum(axis=0), weights)
        rows.append({"n": n} | {name: float(found[name]) for name in MEASURES})
    return rows


def sizes(total: int) -> list[int]:
    """Returns 1, 2, 4, ... and, as the last, `total`."""
    return sorted({2**i for i in range(total.bit_length())} | {total})


def calibration(
    agreement_B: Sequence[float], correct_B: Sequence[bool]
) -> list[dict[str, float | int]]:
    """Averages agreement among samples and correctness over ten bins of agreement.

    The bins have equal width; a value on an edge belongs to the bin above, 1 to the last bin.

    Args:
      agreement_B: in [0, 1], share of an image's samples that give its most frequent name.
      correct_B: whether that name is correct.

    Returns:
      Rows {"low", "high", "images", "agreement", "correctness"} of the bins that hold images.
    """
    agreement_B, correct_B = np.asarray(agreement_B, float), np.asarray(correct_B, bool)
    bin_B = np.minimum((agreement_B * _BINS + 1e-9).astype(int), _BINS - 1)
    rows = []
    for i in range(_BINS):
        inside_B = bin_B == i
        if inside_B.any():
            rows.append(
                {
                    "low": i / _BINS,
                    "high": (i + 1) / _BINS,
                    "images": int(inside_B.sum()),
                    "agreement": float(agreement_B[inside_B].mean()),
                    "correctness": float(correct_B[inside_B].mean()),
                }
            )
    return rows


def calibration_error(rows: Sequence[Mapping[str, float | int]]) -> float | None:
    """Computes the expected calibration error (Naeini et al., AAAI 2015) of `calibration` rows.

    It is the mean distance of agreement and correctness over images; None without images.
    """
    total = sum(row["images"] for row in rows)
    if not total:
        return None
    gaps = (row["images"] * abs(row["agreement"] - row["correctness"]) for row in rows)
    return sum(gaps) / total
