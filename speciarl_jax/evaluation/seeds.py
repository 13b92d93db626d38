"""Statistics over several seeds of a method: intervals and paired tests over seeds and images.

Two things are random: the images that were asked about, and the seed of a training run. Both are
drawn with replacement, independently of each other, because all seeds answer about the same images
(a crossed design). Of S seeds S - 1 are drawn: drawing S would make the variance of their mean too
small by the factor (S - 1) / S (Rao and Wu, 1988), a third for three seeds. A method without seeds,
such as a base policy that answers greedily, has its images resampled alone.

Axes: R resamples, S seeds, B images, K categories.
"""

from collections.abc import Hashable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np

from speciarl_jax.evaluation import bootstrap, comparisons
from speciarl_jax.evaluation.metrics import MEASURES, histogram, measures
from speciarl_jax.evaluation.predictions import categories
from speciarl_jax.verifiers.category import Category

_KINDS = len(Category)
# Images drawn at once, to limit memory.
_CHUNK = 4_000_000
_IMAGES: dict[tuple[comparisons.ImageKey, ...], tuple[comparisons.ImageKey, ...]] = {}
Key = TypeVar("Key", bound=Hashable)


class Runs(NamedTuple):
    """The verdicts about one method, one image set, all seeds."""

    seeds: tuple[int, ...]  # () for a method without seeds
    category_SB: np.ndarray  # int `Category`; [1, B] for a method without seeds


class Verdicts(NamedTuple):
    """What one run said about images that it has a verdict for."""

    images: tuple[comparisons.ImageKey, ...]  # B different ones
    category_BN: np.ndarray  # int8 `Category`, N answers an image


def verdicts_of(lines: comparisons.Lines) -> Verdicts:
    """Returns the verdicts of lines; those without one are left out."""
    found = comparisons.by_image(lines)
    # Runs about the same images share one tuple: less memory, and quick to compare.
    images = _IMAGES.setdefault(tuple(found), tuple(found))
    return Verdicts(images, categories(list(found.values())).astype(np.int8))


def aligned(
    verdicts: Mapping[Key, Verdicts],
) -> tuple[list[comparisons.ImageKey], dict[Key, np.ndarray]]:
    """Brings the verdicts of several runs about one image set into the same order of images.

    Args:
      verdicts: key of a run -> its verdicts.

    Returns:
      The images that every run has a verdict for, in the order of the first run, and for each run
      int `Category` [B, N] of these, N answers an image.
    """
    if not verdicts:
        return [], {}
    first, *others = dict.fromkeys(one.images for one in verdicts.values())
    shared = set(first).intersection(*others)
    images = [image for image in first if image in shared]
    rows = {
        known: np.array([place[image] for image in images], int)
        for known in (first, *others)
        for place in [{image: i for i, image in enumerate(known)}]
    }
    return images, {key: one.category_BN[rows[one.images]] for key, one in verdicts.items()}


class SeedBootstrap:
    """Resamples of all methods about one image set: each draw has the same images for all."""

    def __init__(
        self,
        methods: Mapping[str, Runs],
        weights: Mapping[str, float],
        *,
        resamples: int = bootstrap.RESAMPLES,
        seed: int = 0,
    ):
        """Draws the images.

        Args:
          methods: name -> verdicts; all about the same B images in the same order, at least one.
          weights: as for `metrics.score`.
          resamples: R.
          seed: of the draws.

        Raises:
          ValueError: the methods have different numbers of images, or none, or a method has
            another number of seeds than of rows.
        """
        sizes = {name: one.category_SB.shape for name, one in methods.items()}
        if len({shape[1] for shape in sizes.values()}) != 1 or 0 in next(iter(sizes.values())):
            raise ValueError(
                f"verdicts of shapes {sizes} cannot be paired; all methods must have judged the "
                "same images, at least one"
            )
        for name, one in methods.items():
            if len(one.seeds or (0,)) != len(one.category_SB):
                raise ValueError(f"{name} has seeds {one.seeds}, but {sizes[name][0]} rows")
        self._methods, self._weights = dict(methods), weights
        self._resamples, self._seed = resamples, seed
        self._drawn = self._draw()  # name -> measure -> float [R, S]
        self._exact = {
            name: measures(np.stack([histogram(row) for row in one.category_SB]), weights)
            for name, one in methods.items()
        }

    @property
    def images(self) -> int:
        """Returns B."""
        return next(iter(self._methods.values())).category_SB.shape[1]

    def _draw(self) -> dict[str, dict[str, np.ndarray]]:
        """Counts the categories of each run in each draw of images, and computes the measures.

        Images that are alike in all verdicts are counted together.
        """
        table_BC = np.concatenate([one.category_SB for one in self._methods.values()]).T
        kinds_PC, kind_B = np.unique(table_BC, axis=0, return_inverse=True)
        kinds, kind_B = len(kinds_PC), kind_B.ravel()
        # [P, C * K]: 1 where a run gives the images of that kind that category.
        hot_PCK = np.eye(_KINDS, dtype=np.float32)[kinds_PC - min(Category)].reshape(kinds, -1)
        rng, size = np.random.default_rng(self._seed), len(kind_B)
        step = max(1, _CHUNK // size)
        parts = []
        for start in range(0, self._resamples, step):
            rows = min(step, self._resamples - start)
            drawn = kind_B[rng.integers(size, size=(rows, size), dtype=np.int32)]
            drawn += np.arange(rows)[:, None] * kinds
            counts_RP = np.bincount(drawn.ravel(), minlength=rows * kinds).reshape(rows, kinds)
            # float32 is exact: no count comes near 2 ** 24.
            counts_RCK = (counts_RP.astype(np.float32) @ hot_PCK).reshape(rows, -1, _KINDS)
            parts.append(measures(counts_RCK, self._weights))
        drawn_RC = {name: np.concatenate([part[name] for part in parts]) for name in MEASURES}
        ends = np.cumsum([len(one.category_SB) for one in self._methods.values()])[:-1]
        split = {name: np.split(values, ends, axis=1) for name, values in drawn_RC.items()}
        return {
            method: {name: split[name][i] for name in MEASURES}
            for i, method in enumerate(self._methods)
        }

    def _seed_weights(self, count: int) -> np.ndarray:
        """Draws how much each of S seeds counts in each resample, float [R, S]; rows sum to 1."""
        if count == 1:
            return np.ones((self._resamples, 1))
        rng = np.random.default_rng([self._seed, count])
        drawn_RS = rng.multinomial(count - 1, np.full(count, 1 / count), size=self._resamples)
        return drawn_RS / (count - 1)

    def _means(self, method: str, measure: str, seeds: Sequence[int]) -> tuple[float, np.ndarray]:
        """Returns the mean over some seeds, exact and of each resample [R]."""
        mine = self._methods[method].seeds
        chosen = [mine.index(seed) for seed in seeds] if mine else [0]
        drawn_RS = self._drawn[method][measure][:, chosen]
        weights_RS = self._seed_weights(len(chosen))
        exact = float(self._exact[method][measure][chosen].mean())
        return exact, (drawn_RS * weights_RS).sum(axis=1)

    def scores(self, method: str) -> dict[str, dict[str, Any]]:
        """Returns each of `MEASURES` -> {"value", "interval", "by_seed"}; the mean over the seeds.

        The value is the mean of the measure of each seed, for HM, too. Equal to the mean of one
        run where there is one.
        """
        found = {}
        for measure in MEASURES:
            value, drawn_R = self._means(method, measure, self._methods[method].seeds)
            by_seed = self._exact[method][measure].tolist()
            found[measure] = {
                "value": value,
                "interval": bootstrap.ends(drawn_R),
                "by_seed": by_seed,
            }
        return found

    def common_seeds(self, *names: str) -> tuple[int, ...]:
        """Returns the seeds that all of these methods have; methods without seeds have them all."""
        all_seeds = [self._methods[name].seeds for name in names if self._methods[name].seeds]
        if not all_seeds:
            return ()
        return tuple(s for s in all_seeds[0] if all(s in other for other in all_seeds[1:]))

    def paired(self, a: str, b: str) -> dict[str, Any] | None:
        """Tests b - a: the same images and the same seeds of both in each resample.

        Returns:
          {"seeds": those that both have, "differences": each of `MEASURES` -> {"value", "interval",
          "p" (`bootstrap.two_sided`), "excludes_zero", "by_seed"}}; None where both have seeds, but
          none in common.
        """
        seeds = self.common_seeds(a, b)
        if not seeds and (self._methods[a].seeds or self._methods[b].seeds):
            return None
        found = {}
        for measure in MEASURES:
            (before, before_R), (after, after_R) = (
                self._means(name, measure, seeds) for name in (a, b)
            )
            # Rounding, as equal sums in another order differ in the last bits.
            differences_R = np.round(after_R - before_R, 12)
            low, high = bootstrap.ends(differences_R)
            found[measure] = {
                "value": after - before,
                "interval": [low, high],
                "p": bootstrap.two_sided(differences_R),
                "excludes_zero": low > 0 or high < 0,
                "by_seed": self._by_seed(b, measure, seeds) - self._by_seed(a, measure, seeds),
            }
            found[measure]["by_seed"] = found[measure]["by_seed"].tolist()
        return {"seeds": list(seeds), "differences": found}

    def _by_seed(self, method: str, measure: str, seeds: Sequence[int]) -> np.ndarray:
        mine = self._methods[method].seeds
        chosen = [mine.index(seed) for seed in seeds] if mine else [0]
        return self._exact[method][measure][chosen]

    def closed(
        self, method: str, base: str, best: str, measure: str = "hm"
    ) -> dict[str, Any] | None:
        """Computes which share of the distance from `base` to `best` a method has closed.

        Returns:
          {"value", "interval"}: 0 for the base, 1 for the best. None where the best is no better
          than the base, in the data or in more than a hundredth of the resamples.
        """
        seeds = self.common_seeds(method, base, best)
        parts = [self._means(name, measure, seeds) for name in (method, base, best)]
        (mine, mine_R), (low, low_R), (high, high_R) = parts
        is_known_R = high_R > low_R
        if high <= low or is_known_R.mean() < 0.99:
            return None
        shares_R = (mine_R - low_R)[is_known_R] / (high_R - low_R)[is_known_R]
        return {"value": (mine - low) / (high - low), "interval": bootstrap.ends(shares_R)}
