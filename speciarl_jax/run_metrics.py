"""`metrics.json`: what the answers and verdicts of an evaluation amount to."""

import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath

from speciarl_jax import metrics, naming, statistics
from speciarl_jax.predictions import (
    GREEDY,
    SAMPLES,
    UNVERIFIED,
    Part,
    categories,
    verified,
)
from speciarl_jax.verify.category import Category

FILE = "metrics.json"
Lines = Sequence[Mapping[str, Any]]


def of_parts(
    parts: Mapping[Part, Lines],
    weights: Mapping[str, float],
    open_world: Mapping[Part, Mapping[str, float]] | None = None,
) -> dict[str, Any]:
    """All runs with their figures, and each compared with the first of its data set.

    Args:
      parts: lines of each part, in the order of the file.
      weights: of correct answers (`metrics.score`).
      open_world: metrics of greedy parts (`open_world.measure`), where they were asked for.

    Returns:
      The content of `metrics.json`. A run whose greedy answers all lack a verdict is left out.
    """
    runs, greedy = [], {}
    for part, lines in parts.items():
        if part.decoding != GREEDY or not verified(lines):
            continue
        samples = parts.get(part._replace(decoding=SAMPLES), [])
        row = of_run(part, lines, samples, weights)
        if open_world and part in open_world:
            row["open_world"] = dict(open_world[part])
        runs.append(row)
        greedy[part] = lines
    return {
        "weights": dict(weights),
        "runs": runs,
        "comparisons": comparisons(greedy, weights),
    }


def of_run(
    part: Part, greedy: Lines, samples: Lines, weights: Mapping[str, float]
) -> dict[str, Any]:
    """The figures of one policy, data set and prompt.

    Args:
      part: of the greedy answers.
      greedy: its lines, at least one with a verdict.
      samples: lines of the samples about the same pictures; may be empty.
      weights: as for `of_parts`.
    """
    judged = verified(greedy)
    category_B = categories(judged)[:, 0]
    score = metrics.score(category_B, weights)
    shares = {
        name: score.histogram[name] / len(judged)
        for name in (Category.ABSTAIN.name.lower(), Category.UNPARSED.name.lower())
    }
    row = {
        **{name: getattr(part, name) for name in ("policy", "data", "prompt")},
        "pictures": len(judged),
        "score": {
            **{name: getattr(score, name) for name in statistics.MEASURES},
            "histogram": score.histogram,
        },
        "intervals": statistics.intervals(category_B, weights),
        **shares,
        UNVERIFIED: 1 - len(judged) / len(greedy),
        "best_of": [],
        "calibration": [],
        "calibration_error": None,
        "by_class": _by_class(judged, weights),
    }
    sampled = verified(samples)
    if sampled:
        row["samples"] = len(sampled[0]["responses"])
        row["sampled_pictures"] = len(sampled)
        row["best_of"] = statistics.best_of(categories(sampled), weights)
        row["calibration"] = statistics.calibration(*agreement(sampled))
        row["calibration_error"] = statistics.calibration_error(row["calibration"])
    return row


def agreement(samples: Lines) -> tuple[list[float], list[bool]]:
    """Share of each picture's samples that give the most frequent name, and whether it is correct.

    Pictures whose samples mostly decline, or cannot be read, name nothing and are left out.
    """
    shares, correct = [], []
    for line in samples:
        name, share = naming.most_frequent(line["responses"])
        if not name:
            continue
        first = next(
            category
            for response, category in zip(line["responses"], line["categories"], strict=True)
            if naming.name_of(response) == name
        )
        shares.append(share)
        correct.append(Category[first.upper()] in metrics.CORRECT)
    return shares, correct


def _by_class(judged: Lines, weights: Mapping[str, float]) -> dict[str, dict[str, Any]]:
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for line in judged:
        groups.setdefault(line["label"], []).append(line)
    table = {}
    for label in sorted(groups):
        score = metrics.score(categories(groups[label]), weights)
        table[label] = {"pictures": len(groups[label])} | {
            name: getattr(score, name) for name in statistics.MEASURES
        }
    return table


def comparisons(greedy: Mapping[Part, Lines], weights: Mapping[str, float]) -> list[dict[str, Any]]:
    """Each run but the first of its data set against that one, b - a on the same pictures."""
    first: dict[str, Part] = {}
    found = []
    for part, lines in greedy.items():
        reference = first.setdefault(part.data, part)
        if part != reference and (
            row := compare(reference, greedy[reference], part, lines, weights)
        ):
            found.append(row)
    return found


def compare(
    a: Part, a_lines: Lines, b: Part, b_lines: Lines, weights: Mapping[str, float]
) -> dict[str, Any] | None:
    """Paired bootstrap of b - a; None if they have no picture in common."""
    pairs = paired_lines(a_lines, b_lines)
    if not pairs:
        return None
    sides = [categories([pair[i] for pair in pairs])[:, 0] for i in (0, 1)]
    names = ("policy", "data", "prompt")
    return {
        "a": {name: getattr(a, name) for name in names},
        "b": {name: getattr(b, name) for name in names},
        "pictures": len(pairs),
        "differences": statistics.paired(*sides, weights),
    }


def paired_lines(a: Lines, b: Lines) -> list[tuple[Mapping[str, Any], Mapping[str, Any]]]:
    """Lines about the same pictures with the same true labels, both with a verdict."""

    def keyed(lines):
        found, seen = {}, {}
        for line in lines:
            key = (line["image_id"], line["label"])
            # A mixture may show a picture twice.
            seen[key] = seen.get(key, 0) + 1
            found[*key, seen[key]] = line
        return found

    mine, theirs = keyed(a), keyed(b)
    pairs = [(line, theirs[key]) for key, line in mine.items() if key in theirs]
    return [pair for pair in pairs if len(verified(pair)) == 2]


def write(folder: str | os.PathLike, found: Mapping[str, Any]) -> epath.Path:
    """Writes `metrics.json`."""
    path = epath.Path(folder) / FILE
    path.write_text(json.dumps(found, indent=1) + "\n")
    return path


def score_of(row: Mapping[str, Any]) -> metrics.Score:
    """The `Score` of a run of `metrics.json`."""
    return metrics.Score(**row["score"])
