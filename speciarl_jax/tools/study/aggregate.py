"""The results of a study: every row over its seeds, and against the reference."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from speciarl_jax.evaluation import bootstrap, metrics, seeds
from speciarl_jax.evaluation.predictions import SAMPLES
from speciarl_jax.tools.study import collect, state
from speciarl_jax.tools.study.plan import Planned
from speciarl_jax.tools.study.runner import Plan
from speciarl_jax.verifiers.category import Category

METHOD = (
    "Values are means over the seeds of the measure of each seed. Intervals (95%) and p: bootstrap "
    "with images and seeds both drawn with replacement, independently, the same images for all "
    "rows and the same seeds for both rows of a difference. Of one seed, and where nothing is "
    "trained, only the images are drawn."
)


def best_of(row: str, count: int) -> str:
    """Names the best of N samples of a row as a row of its own."""
    return f"{row}, best of {count}"


def of_study(plan: Plan, *, resamples: int = bootstrap.RESAMPLES) -> dict[str, Any]:
    """Computes the content of `study.json` from the runs that are finished.

    Args:
      plan: of all rows and seeds.
      resamples: of the bootstrap.

    Raises:
      ValueError: runs cannot be set side by side (`collect.check`), or a run was made with another
        configuration.
    """
    planner, study = plan.planner, plan.planner.study
    choices = {row.name: plan.choice(row) for row in plan.rows}
    planned = {row.name: list(plan.reported(row)) for row in plan.rows}
    status = {
        one.folder: state.status(planner.folder, one) for runs in planned.values() for one in runs
    }
    finished = {
        name: [one for one in runs if status[one.folder] == state.FINISHED]
        for name, runs in planned.items()
    }
    every = [one for runs in finished.values() for one in runs]
    collect.check(plan.answers, every)
    weights = plan.answers.weights(every[0]) if every else {}
    best = study.row(study.base)
    named = {
        "base": study.base,
        "reference": study.reference,
        "best": best_of(best.name, best.best_of) if best.best_of else None,
    }
    wanted = {row.name: len(plan.seeds) if row.train else 1 for row in plan.rows}
    return {
        **named,
        "seeds": plan.seeds,
        "method": METHOD,
        "weights": metrics.named_weights(weights) if weights else {},
        "resamples": resamples,
        "versions": dict(state.versions()),
        "study_digest": _digest(one.digest for runs in planned.values() for one in runs),
        "sets": {
            name: {
                "images_of": part,
                "frontier": [
                    point
                    for planned in finished[study.base]
                    for point in plan.answers.frontier(planned, name)
                ],
            }
            | of_methods(_methods(plan, finished, name), weights, wanted, resamples, **named)
            for name, part in planner.sets.items()
        },
        "search": {name: choice for name, choice in choices.items() if choice},
        "waiting_for_search": [
            row.name for row in plan.rows if row.search and not choices[row.name]
        ],
        "runs": [
            _record(plan, one, status[one.folder]) for runs in planned.values() for one in runs
        ],
        "trials": [_record(plan, one) for one in plan.runs() if one.trial is not None],
    }


def _digest(parts: Any) -> str:
    return hashlib.sha256("".join(parts).encode()).hexdigest()[:16]


def _methods(
    plan: Plan, finished: Mapping[str, Sequence[Planned]], name: str
) -> dict[str, seeds.Runs]:
    """Returns the verdicts of all rows about an image set; the best of N samples as further rows.

    All are about the images that every finished run has a verdict for.
    """
    verdicts: dict[tuple[str, int | None], seeds.Verdicts] = {}
    for row, runs in finished.items():
        for planned in runs:
            for part, found in plan.answers.of_run(planned).items():
                if part.data == name:
                    count = plan.planner.study.row(row).best_of
                    shown = best_of(row, count) if part.decoding == SAMPLES else row
                    verdicts[shown, planned.seed] = found
    images, category = seeds.aligned(verdicts)
    return grouped(category) if images else {}


def grouped(category: Mapping[tuple[str, int | None], np.ndarray]) -> dict[str, seeds.Runs]:
    """Brings the seeds of each method together; of N samples an image the best counts.

    Args:
      category: (method, seed or None) -> int `Category` [B, N].
    """
    found: dict[str, dict[int | None, np.ndarray]] = {}
    for (method, seed), category_BN in category.items():
        found.setdefault(method, {})[seed] = category_BN.max(axis=1)
    return {
        method: seeds.Runs(
            tuple(seed for seed in runs if seed is not None), np.stack(list(runs.values()))
        )
        for method, runs in found.items()
    }


def of_methods(
    methods: Mapping[str, seeds.Runs],
    weights: Mapping[str, float],
    wanted: Mapping[str, int],
    resamples: int = bootstrap.RESAMPLES,
    *,
    base: str | None = None,
    reference: str | None = None,
    best: str | None = None,
) -> dict[str, Any]:
    """Computes the scores of methods about one image set.

    Args:
      methods: name -> verdicts, about the same images.
      weights: as for `metrics.score`.
      wanted: name -> number of seeds that it should have; a method without an entry has all.
      resamples: of the bootstrap.
      base: method from which the distance to `best` is counted.
      reference: method that the others are tested against.
      best: method at the end of that distance.

    Returns:
      {"images", "rows": [{"name", "seeds", "runs", "wanted", "scores" (`SeedBootstrap.scores`),
      "categories": mean share of each, "against_reference" (`SeedBootstrap.paired`, or None),
      "closed" (`SeedBootstrap.closed`, or None), "hm_against": of a method with seeds, each other
      one -> the difference of HM from it, as in `SeedBootstrap.paired`}]}.
    """
    if not methods:
        return {"images": 0, "rows": []}
    drawn = seeds.SeedBootstrap(methods, weights, resamples=resamples)
    rows, seeded = [], [name for name, runs in methods.items() if runs.seeds]
    for name, runs in methods.items():
        is_tested = reference in methods and name != reference
        can_close = base in methods and best in methods and name not in (base, best)
        rows.append(
            {
                "name": name,
                "seeds": list(runs.seeds),
                "runs": len(runs.category_SB),
                "wanted": wanted.get(name, len(runs.category_SB)),
                "scores": drawn.scores(name),
                "categories": _shares(runs.category_SB),
                "against_reference": drawn.paired(reference, name) if is_tested else None,
                "closed": drawn.closed(name, base, best) if can_close else None,
                "hm_against": {
                    other: test["differences"]["hm"]
                    for other in seeded
                    if runs.seeds and other != name and (test := drawn.paired(other, name))
                },
            }
        )
    return {"images": drawn.images, "rows": rows}


def _shares(category_SB: np.ndarray) -> dict[str, float]:
    counts_K = metrics.histogram(category_SB)
    return {c.name.lower(): float(counts_K[c - min(Category)] / counts_K.sum()) for c in Category}


def _record(plan: Plan, planned: Planned, how: str | None = None) -> dict[str, Any]:
    """Describes a run: what was or would be run, and what has become of it."""
    noted = state.read(plan.planner.folder, planned)
    kept = ("seconds", "exit_code", "lines", "versions", "time")
    return {
        "name": planned.name,
        "row": planned.row,
        "seed": planned.seed,
        "trial": planned.trial,
        "status": how or noted.get("status", state.MISSING),
        "folder": planned.folder,
        "commands": planned.shown(),
        "overrides": json.loads(json.dumps(planned.overrides)),
        "config_digest": planned.digest,
        **{key: noted[key] for key in kept if key in noted},
    }
