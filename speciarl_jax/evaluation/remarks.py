"""Sentences about `metrics.json`, for terminals and reports."""

from collections.abc import Mapping, Sequence
from typing import Any

from speciarl_jax.evaluation import outcome, unknown_answers

# Metrics of what is watched while a run trains (`training/health.py`).
HEALTH = "health/"


def about(found: Mapping[str, Any]) -> list[str]:
    """Writes sentences about `metrics.json`.

    They say what the paired tests show, and name runs that were asked about different images, runs
    that differ in more than the policy, runs that are not compared, how often names of `predict`
    are correct, and answers that the label tree does not know.
    """
    said = compared(found["comparisons"]) + image_sets(found)
    said += [
        f"{_pair(row)} also differ in {_both(row['differs'])}."
        for row in found["comparisons"]
        if row["differs"]
    ]
    said += refusals(found["not_compared"])
    for row in found["runs"]:
        worth = "; ".join(
            f"{c['confidence']}: {c['named']:.0%} named, {c['correctness']:.0%} of them correctly"
            for c in row["choices"]
            if c["named"]
        )
        if worth:
            said.append(f"{_named(row)}, names of predict --confidence: {worth}.")
    return said + unknown(found["runs"])


def compared(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Writes a sentence about what each comparison shows, and at their end the rule of all."""
    said = [
        f"{_named(row['b'])} against {_named(row['a'])}: {outcome.sentence(test)} "
        f"({outcome.evidence(test)})."
        for row in rows
        if (test := outcome.tested(row))
    ]
    return [*said, outcome.RULE] if said else []


def image_sets(found: Mapping[str, Any]) -> list[str]:
    """Says of each data set whose runs were asked about different images which ones count.

    Args:
      found: "runs" and "comparisons" as in `metrics.json`.
    """
    said = []
    for data, rows in by_data(found["comparisons"]).items():
        names = list(dict.fromkeys(_named(row[side]) for row in rows for side in "ab"))
        counts = {_named(row): row["images"] for row in found["runs"]}
        known = {name: counts[name] for name in names if name in counts}
        shared = rows[0]["images"]
        if all(number == shared for number in known.values()):
            continue
        each = ", ".join(f"{name} {number:,}" for name, number in known.items())
        said.append(
            f"Of {data} not all runs have a verdict about the same images ({each}). Differences in "
            f"tables are over the {shared:,} images that all of them have."
        )
    return said


def warned(history: Sequence[Mapping[str, float]]) -> list[str]:
    """Writes a sentence about each thing that the metrics of a run were marked for.

    Args:
      history: rows of `metrics.jsonl`; their health/NAME is above 0 where something was wrong.
    """
    steps: dict[str, list[bool]] = {}
    last: dict[str, int] = {}
    for row in history:
        for key, value in row.items():
            if key.startswith(HEALTH):
                steps.setdefault(key, []).append(value > 0)
                if value > 0:
                    last[key] = int(row["step"])
    return [
        f"Watch {key}: something was wrong in {sum(steps[key]):,} of {len(steps[key]):,} rows of "
        f"metrics.jsonl, the last time after step {step}; the log of the run says how to mend it."
        for key, step in last.items()
    ]


def by_data(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[Mapping[str, Any]]]:
    """Groups comparisons by their data set."""
    found: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        found.setdefault(row["b"]["data"], []).append(row)
    return found


def unknown(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Writes a sentence about the answers of each run that its label tree has no name for."""
    return [f"{_named(row)}: {said}" for row in rows if (said := unknown_answers.describe(row))]


def refusals(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Writes a sentence with the remedy for each row of "not_compared"."""
    return [
        f"{_pair(row)} are not compared: {_both(row['because'])}. Evaluate both with the same "
        "verifier, labels and images (--overwrite replaces the answers that are there)."
        + (_OWN_JUDGE if "verifier.weights" in row["because"] else "")
        for row in rows
    ]


_OWN_JUDGE = (
    " With config.verifier.flax_judge.weights='policy_base' each base judges itself; give the "
    "folder of one judge instead."
)


def _pair(row: Mapping[str, Any]) -> str:
    return " and ".join(_named(row[side]) for side in "ab")


def _named(row: Mapping[str, Any]) -> str:
    """Names a run, or a side of a comparison, which may have the folder of the run besides."""
    return "/".join(row[name] for name in ("run", "policy", "data", "prompt") if name in row)


def _both(found: Mapping[str, Sequence[Any]]) -> str:
    return ", ".join(f"{key} ({a!r} and {b!r})" for key, (a, b) in found.items())
