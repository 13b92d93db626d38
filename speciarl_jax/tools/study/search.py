"""Chooses the setting of a row by its trials on images that are not reported."""

import pathlib
from collections.abc import Mapping
from typing import Any

from speciarl_jax.evaluation import metrics, seeds
from speciarl_jax.tools.study import collect, state
from speciarl_jax.tools.study.definition import Row
from speciarl_jax.tools.study.plan import BASE_TRIAL, Planned, Planner


def needed(planner: Planner, row: Row) -> list[Planned]:
    """Lists the runs that must have ended before the setting of a row can be chosen."""
    if not row.search:
        return []
    watched = planner.study.search.max_correctness_drop is not None
    return ([planner.validated_base()] if watched else []) + list(planner.trials(row))


def has_ended(folder: pathlib.Path, planned: Planned) -> bool:
    """Whether a trial is finished, or has diverged: then it counts, and is not run again."""
    noted = state.read(folder, planned)
    diverged = noted.get("status") == state.FAILED and any(
        FloatingPointError.__name__ in line for line in noted["lines"]
    )
    return diverged or state.status(folder, planned) == state.FINISHED


def choose(planner: Planner, row: Row, answers: collect.Answers) -> dict[str, Any] | None:
    """Chooses the setting of a row.

    Returns:
      {"chosen": its overrides, "trial": its number, "rule": how it was chosen, "base": scores of
      the base or None, "trials": [{"trial", "overrides", "status", "allowed" and scores}]}. None
      while trials are missing.

    Raises:
      ValueError: all trials diverged.
    """
    runs, folder, rule = needed(planner, row), planner.folder, planner.study.search
    if not all(has_ended(folder, planned) for planned in runs):
        return None
    finished = [one for one in runs if state.status(folder, one) == state.FINISHED]
    collect.check(answers, finished)
    scores = _scores(answers, finished)
    base = next((scores[one.folder] for one in finished if one.trial == BASE_TRIAL), None)
    trials = []
    for planned in runs:
        if planned.trial == BASE_TRIAL:
            continue
        found = scores.get(planned.folder)
        how = state.read(folder, planned)["status"]
        trial = {"trial": planned.trial, "overrides": _of_trial(row, planned), "status": how}
        trial["allowed"] = found is not None and (
            base is None or found["correctness"] >= base["correctness"] - rule.max_correctness_drop
        )
        trials.append(trial | (found or {}))
    known = [trial for trial in trials if rule.metric in trial]
    if not known:
        raise ValueError(
            f"all trials of {row.name!r} diverged; see {folder / 'logs'}, and mend the values "
            "of its search"
        )
    allowed, key, text = [t for t in known if t["allowed"]], rule.metric, rule.metric
    if base is not None:
        text += f", with correctness at most {rule.max_correctness_drop:g} below the base's"
    if not allowed:
        allowed, key = known, "correctness"
        text = "correctness, as it fell too far below the base's in all trials"
    best = max(allowed, key=lambda trial: trial[key])  # of equal ones the first
    chosen = {"chosen": best["overrides"], "trial": best["trial"], "rule": text}
    return chosen | {"base": base, "trials": trials}


def _of_trial(row: Row, planned: Planned) -> dict[str, Any]:
    return {key: planned.overrides[key] for key in row.search}


def _scores(answers: collect.Answers, runs: list[Planned]) -> Mapping[str, dict[str, Any]]:
    """Scores runs on the images that all of them have a verdict for."""
    verdicts = {one.folder: answers.of_run(one)[one.parts[0]] for one in runs}
    images, category = seeds.aligned(verdicts)
    weights = answers.weights(runs[0]) if runs else {}
    found = {}
    for name, category_BN in category.items():
        score = metrics.score(category_BN[:, 0], weights)
        measured = {measure: getattr(score, measure) for measure in metrics.MEASURES}
        found[name] = measured | {"images": len(images)}
    return found
