"""`metrics.json`: scores, intervals, best-of-n and comparisons from the lines of an evaluation."""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath

from speciarl_jax.evaluation import (
    bootstrap,
    comparisons,
    consensus,
    constant_answer,
    metrics,
    unknown_answers,
)
from speciarl_jax.evaluation.pairs import run_key
from speciarl_jax.evaluation.predictions import (
    GREEDY,
    SAMPLES,
    UNVERIFIED,
    Part,
    Predictions,
    categories,
    verified,
)
from speciarl_jax.runtime import jsonl, renamed
from speciarl_jax.verifiers.category import Category
from speciarl_jax.verifiers.taxonomy import Taxonomy

FILE = "metrics.json"
Lines = Sequence[Mapping[str, Any]]
# Name of a part -> its provenance (`Predictions.provenance`).
Provenances = Mapping[str, Mapping[str, Any]]
# Values of `predict --confidence` that `choices` is computed for.
CONFIDENCES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)


def update(
    folder: str | os.PathLike,
    store: Predictions,
    weights: Mapping[str, float],
    *,
    labels: Mapping[str, Any] | None = None,
    open_world: Mapping[Part, Mapping[str, float]] | None = None,
) -> dict[str, Any]:
    """Writes `metrics.json` anew, and returns its content.

    Open-world metrics, and what was computed by a label tree, are kept from an earlier
    `metrics.json` where they are not computed this time and the lines are the same. The best
    constant answer is kept only if the weights are the same, too.

    Args:
      weights: as for `of_parts`.
      labels: as for `of_parts`.
      open_world: as for `of_parts`.
    """
    parts, provenances = store.parts(), store.provenance
    found = of_parts(parts, weights, provenances=provenances, labels=labels, open_world=open_world)
    before = _earlier(folder)
    earlier = {run_key(row): row for row in before["runs"]}
    weighed_alike = metrics.numbers_of(before["weights"]) == dict(weights)
    for row in found["runs"]:
        old = earlier.get(run_key(row), {})
        same = {d: old.get("lines", {}).get(d) == row["lines"][d] for d in (GREEDY, SAMPLES)}
        if same[GREEDY] and "open_world" in old:
            new = row.get("open_world", {})
            # Both metrics of a judge come from the same requests, so none is mixed with an old one.
            judged_again = "judge_unverified" in new
            row["open_world"] = {
                name: value
                for name, value in old["open_world"].items()
                if not (judged_again and name.startswith("judge_"))
            } | new
        if same[SAMPLES] and not row["choices"]:
            row["choices"] = old["choices"]
        for name, kept in (("constant_answer", weighed_alike), ("unknown_answers", True)):
            if same[GREEDY] and kept and name in old:
                row.setdefault(name, old[name])
    write(folder, found)
    return found


def _earlier(folder: str | os.PathLike) -> dict[str, Any]:
    """Reads the `metrics.json` of a folder; without runs if it is missing or damaged."""
    path, none = epath.Path(folder) / FILE, {"runs": [], "weights": {}}
    try:
        found = renamed.results(json.loads(path.read_text())) if path.exists() else none
        return {"runs": found["runs"], "weights": found["weights"]}
    except (ValueError, LookupError, TypeError):
        return none


def of_parts(
    parts: Mapping[Part, Lines],
    weights: Mapping[str, float],
    *,
    provenances: Provenances | None = None,
    labels: Mapping[str, Any] | None = None,
    open_world: Mapping[Part, Mapping[str, float]] | None = None,
) -> dict[str, Any]:
    """Computes the figures of all runs, and compares each with the first of its data set.

    Args:
      parts: lines of each part, in the order of the file.
      weights: of correct answers (`metrics.score`).
      provenances: of the parts; without them all runs of a data set are compared.
      labels: data set -> `Run.labels`; as for `of_run`.
      open_world: open-world metrics of greedy parts (`open_world.measure`).

    Returns:
      The content of `metrics.json`. A run whose greedy answers all lack a verdict is left out.
    """
    runs, greedy = [], {}
    for part, lines in parts.items():
        if part.decoding != GREEDY or not verified(lines):
            continue
        samples = parts.get(part._replace(decoding=SAMPLES), [])
        row = of_run(part, lines, samples, weights, (labels or {}).get(part.data))
        row["lines"] = {GREEDY: _digest(lines), SAMPLES: _digest(samples)}
        if open_world and part in open_world:
            row["open_world"] = dict(open_world[part])
        runs.append(row)
        greedy[part] = lines
    sides = comparisons.sides_of(greedy, provenances or {})
    compared, not_compared = comparisons.of_runs(sides)
    return {
        "weights": metrics.named_weights(weights),
        "runs": runs,
        "comparisons": comparisons.of_pairs(compared, weights),
        "not_compared": not_compared,
    }


def _digest(lines: Lines) -> str:
    return hashlib.sha256(json.dumps(lines).encode()).hexdigest()[:32]


def of_run(
    part: Part, greedy: Lines, samples: Lines, weights: Mapping[str, float], labels: Any = None
) -> dict[str, Any]:
    """Computes the figures of one policy, data set and prompt.

    Args:
      part: of the greedy answers.
      greedy: its lines, at least one with a verdict.
      samples: lines of the samples about the same images; may be empty.
      weights: as for `of_parts`.
      labels: `Run.labels` of the data set. Unless it is a `Taxonomy` that has all true labels,
        `choices` is empty, and "constant_answer" and "unknown_answers" are left out.
    """
    judged = verified(greedy)
    tree = labels if _is_tree_of(labels, [*greedy, *samples]) else None
    category_B = categories(judged)[:, 0]
    score = metrics.score(category_B, weights)
    shares = {name: score.histogram[name] / len(judged) for name in ("abstain", "unparsed")}
    row = {
        **comparisons.named(part),
        "images": len(judged),
        "score": _measures(score) | {"histogram": score.histogram},
        "intervals": bootstrap.intervals(category_B, weights),
        **shares,
        UNVERIFIED: 1 - len(judged) / len(greedy),
        "best_of": [],
        "calibration": [],
        "calibration_error": None,
        "choices": [],
        "by_class": _by_class(judged, weights),
    }
    sampled = verified(samples)
    if sampled:
        row["samples"] = len(sampled[0]["responses"])
        row["sampled_images"] = len(sampled)
        row["best_of"] = bootstrap.best_of(categories(sampled), weights)
        row["calibration"] = bootstrap.calibration(*agreement(sampled))
        row["calibration_error"] = bootstrap.calibration_error(row["calibration"])
        if tree:
            row["choices"] = choices(sampled, tree, weights)
    if tree:
        label_ids = [line["label_id"] for line in judged]
        row["constant_answer"] = constant_answer.best(label_ids, tree, weights)
        responses = [line["responses"][0] for line in greedy]
        row["unknown_answers"] = unknown_answers.find(responses, tree)
    return row


def _is_tree_of(labels: Any, lines: Lines) -> bool:
    """Whether labels are a tree that has the true labels of lines, maybe older ones."""
    if not isinstance(labels, Taxonomy):
        return False
    return {line.get("label_id") for line in lines} <= set(labels.leaf_ids)


def _measures(score: metrics.Score) -> dict[str, float]:
    return {name: getattr(score, name) for name in metrics.MEASURES}


def agreement(samples: Lines) -> tuple[list[float], list[bool]]:
    """Finds how often the samples of an image agree, and whether what they agree on is correct.

    An answer that cannot be read has no name, but counts in the number of samples. Images whose
    most frequent answer is an abstention, or without any readable answer, are left out. Where a
    judge gave one name several verdicts, the majority counts, and a tie counts as wrong.

    Returns:
      For each remaining image the share of samples with its most frequent name, and whether that
      name is correct.
    """
    shares, correct = [], []
    for line in samples:
        both = list(zip(line["responses"], line["categories"], strict=True))
        names = [None if c == "unparsed" else consensus.name_of(said) for said, c in both]
        name, share = consensus.most_frequent(names)
        if not name:
            continue
        right = [
            Category[category.upper()] in metrics.CORRECT
            for given, (_, category) in zip(names, both, strict=True)
            if given == name
        ]
        shares.append(share)
        correct.append(2 * sum(right) > len(right))
    return shares, correct


def choices(
    samples: Lines, labels: Taxonomy, weights: Mapping[str, float]
) -> list[dict[str, float | int | None]]:
    """Scores the names that `python -m speciarl_jax.predict` would give at each confidence.

    Args:
      labels: the tree by which answers support names; it also judges the chosen name.
      weights: as for `metrics.score`.

    Returns:
      A row for each of `CONFIDENCES`: "confidence"; "named", share of the images that get a name;
      "agreement", mean support of these names; "correctness", share of them that are correct;
      "specificity", mean weight of the correct ones. The last three are None without names.
    """
    tree = consensus.NameTree(labels.data)
    paths = [(line["label_id"], consensus.path_of(line["responses"], tree)) for line in samples]
    rows = []
    for confidence in CONFIDENCES:
        given = [(label, consensus.safest(path, confidence)) for label, path in paths]
        given = [(label, *step) for label, step in given if step]
        said = [labels.category(tree.spoken(name), label) for label, name, _ in given]
        score = metrics.score(said, weights) if said else None
        rows.append(
            {
                "confidence": confidence,
                "named": len(given) / len(paths),
                "agreement": sum(share for *_, share in given) / len(given) if given else None,
                "correctness": score.correctness if score else None,
                "specificity": score.specificity if score else None,
            }
        )
    return rows


def _by_class(judged: Lines, weights: Mapping[str, float]) -> dict[str, dict[str, Any]]:
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for line in judged:
        groups.setdefault(line["label"], []).append(line)
    return {
        label: {"images": len(lines)} | _measures(metrics.score(categories(lines), weights))
        for label, lines in sorted(groups.items())
    }


def write(folder: str | os.PathLike, found: Mapping[str, Any]) -> epath.Path:
    """Writes `metrics.json`; a kill leaves the old or the new one."""
    path = epath.Path(folder) / FILE
    jsonl.replace(path, json.dumps(found, indent=1) + "\n")
    return path
