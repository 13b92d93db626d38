"""Which runs of `metrics.json` are set side by side."""

from collections.abc import Mapping, Sequence
from typing import Any

# Name of the policy before training, which the others are set beside.
BASE = "base"
Run = Mapping[str, Any]


def run_key(row: Mapping[str, Any]) -> tuple[str, str, str]:
    """Returns (policy, data, prompt) of a row of predictions or metrics."""
    return row["policy"], row["data"], row["prompt"]


def base_of(run: Run, runs: Sequence[Run]) -> Run | None:
    """The base policy on the same images and prompt, unless it is this run."""
    for other in runs:
        same = (other["data"], other["prompt"]) == (run["data"], run["prompt"])
        if same and other["policy"] == BASE and other is not run:
            return other
    return None


def last_of_each(runs: Sequence[Run]) -> list[tuple[Run, Run]]:
    """(base, run) of each data set and prompt: the last run that has a base."""
    found = {}
    for run in runs:
        base = base_of(run, runs)
        if base is not None:
            found[run["data"], run["prompt"]] = base, run
    return list(found.values())


def opening(runs: Sequence[Run]) -> tuple[Run, Run]:
    """The pair that a page opens with: the last run that has a base, and that base.

    Where none has one, the last run and the first about the same data set.
    """
    for run in reversed(runs):
        base = base_of(run, runs)
        if base is not None:
            return base, run
    last = runs[-1]
    return next(run for run in runs if run["data"] == last["data"]), last
