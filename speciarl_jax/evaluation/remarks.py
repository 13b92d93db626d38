"""Sentences about `metrics.json`, for terminals and reports."""

from collections.abc import Mapping, Sequence
from typing import Any

from speciarl_jax.evaluation import unknown_answers


def about(found: Mapping[str, Any]) -> list[str]:
    """Writes sentences about `metrics.json`.

    They name runs that differ in more than the policy, runs that are not compared, how often names
    of `predict` are correct, and answers that the label tree does not know.
    """
    said = [
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
    return " and ".join("/".join(row[side].values()) for side in "ab")


def _named(row: Mapping[str, Any]) -> str:
    return "/".join(row[name] for name in ("policy", "data", "prompt"))


def _both(found: Mapping[str, Sequence[Any]]) -> str:
    return ", ".join(f"{key} ({a!r} and {b!r})" for key, (a, b) in found.items())
