"""`metrics.json`: what the answers and verdicts of an evaluation amount to."""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath

from speciarl_jax.evaluation import bootstrap, consensus, metrics
from speciarl_jax.evaluation.predictions import (
    GREEDY,
    SAMPLES,
    UNVERIFIED,
    Part,
    Predictions,
    categories,
    differing,
    verified,
)
from speciarl_jax.runtime import jsonl, renamed
from speciarl_jax.verifiers.category import Category
from speciarl_jax.verifiers.taxonomy import Taxonomy

FILE = "metrics.json"
Lines = Sequence[Mapping[str, Any]]
# Name of a part -> what it was made with.
Facts = Mapping[str, Mapping[str, Any]]
# Where these facts of two runs differ, a difference of their scores says nothing about policies.
IMAGES, VERDICTS = ("data", "images", "seed"), ("verifier", "labels")
# These may differ on purpose.
_ASKING = ("prompt", "max_pixels", "max_tokens")
# Of `consensus.choose`; what `choices` is computed for.
CONFIDENCES = (0.5, 0.6, 0.7, 0.8, 0.9, 1.0)


def update(
    folder: str | os.PathLike,
    store: Predictions,
    weights: Mapping[str, float],
    *,
    labels: Mapping[str, Any] | None = None,
    open_world: Mapping[Part, Mapping[str, float]] | None = None,
) -> dict[str, Any]:
    """Writes `metrics.json` anew.

    What was measured earlier on lines that are the same now, and is not measured this time
    (open-world metrics, `choices` of data sets without `labels`), stays in it.

    Args:
      folder: receives it.
      store: the lines.
      weights: as for `of_parts`.
      labels: as for `of_parts`.
      open_world: as for `of_parts`.

    Returns:
      Its content.
    """
    found = of_parts(
        store.parts(), weights, facts=store.facts, labels=labels, open_world=open_world
    )
    earlier = {_key(row): row for row in _earlier_runs(folder)}
    for row in found["runs"]:
        old = earlier.get(_key(row), {})
        greedy, samples = (_same_lines(old, row, decoding) for decoding in (GREEDY, SAMPLES))
        if greedy and "open_world" in old:
            new = row.get("open_world", {})
            # Both figures of a judge are of one asking.
            again = "judge_" if "judge_unverified" in new else "nothing"
            kept = {k: v for k, v in old["open_world"].items() if not k.startswith(again)}
            row["open_world"] = kept | new
        if samples and not row["choices"]:
            row["choices"] = old["choices"]
    write(folder, found)
    return found


def _key(row: Mapping[str, Any]) -> tuple[str, ...]:
    return row["policy"], row["data"], row["prompt"]


def _earlier_runs(folder: str | os.PathLike) -> list[dict[str, Any]]:
    """The runs in the `metrics.json` of a folder, if there is a whole one."""
    path = epath.Path(folder) / FILE
    try:
        return renamed.results(json.loads(path.read_text()))["runs"] if path.exists() else []
    except (ValueError, LookupError, TypeError):
        return []  # it is about to be written anew


def _same_lines(old: Mapping[str, Any], new: Mapping[str, Any], decoding: str) -> bool:
    digests = old.get("lines", {}).get(decoding), new["lines"][decoding]
    return digests[0] == digests[1]


def of_parts(
    parts: Mapping[Part, Lines],
    weights: Mapping[str, float],
    *,
    facts: Facts | None = None,
    labels: Mapping[str, Any] | None = None,
    open_world: Mapping[Part, Mapping[str, float]] | None = None,
) -> dict[str, Any]:
    """All runs with their figures, and each compared with the first of its data set.

    Args:
      parts: lines of each part, in the order of the file.
      weights: of correct answers (`metrics.score`).
      facts: what the parts were made with (`Predictions.facts`); without, all can be compared.
      labels: data set -> the names around its labels (`Run.labels`), for `choices`.
      open_world: metrics of greedy parts (`open_world.measure`), where they were asked for.

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
    compared, not_compared = comparisons(greedy, weights, facts or {})
    return {
        "weights": dict(weights),
        "runs": runs,
        "comparisons": compared,
        "not_compared": not_compared,
    }


def _digest(lines: Lines) -> str:
    return hashlib.sha256(json.dumps(lines).encode()).hexdigest()[:32]


def of_run(
    part: Part, greedy: Lines, samples: Lines, weights: Mapping[str, float], labels: Any = None
) -> dict[str, Any]:
    """The figures of one policy, data set and prompt.

    Args:
      part: of the greedy answers.
      greedy: its lines, at least one with a verdict.
      samples: lines of the samples about the same images; may be empty.
      weights: as for `of_parts`.
      labels: the names around the labels of the data set; only a `Taxonomy` can judge `choices`.
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
        "images": len(judged),
        "score": {
            **{name: getattr(score, name) for name in bootstrap.MEASURES},
            "histogram": score.histogram,
        },
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
        if isinstance(labels, Taxonomy):
            row["choices"] = choices(sampled, labels, weights)
    return row


def agreement(samples: Lines) -> tuple[list[float], list[bool]]:
    """Share of each image's samples that give the most frequent name, and whether it is correct.

    What the verifier could not read names nothing, and counts in the share of no name. Images
    whose samples mostly decline, or cannot be read, are left out. Where a judge was of several
    minds about answers that give one name, the more frequent opinion counts, and a tie is wrong.
    """
    shares, correct = [], []
    unread = Category.UNPARSED.name.lower()
    for line in samples:
        both = list(zip(line["responses"], line["categories"], strict=True))
        names = [None if category == unread else consensus.name_of(said) for said, category in both]
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
    """What the names are worth that `python -m speciarl_jax.predict` would give.

    Args:
      samples: lines of samples.
      labels: names the answers' support goes up by, and judges the chosen name.
      weights: as for `metrics.score`.

    Returns:
      A row for each of `CONFIDENCES`: {"confidence", "named", share of the images that get a
      name, "agreement", mean support of these names, "correctness", share of them that are correct,
      "specificity", mean weight of those}; None in the last three where no image gets a name.
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
    table = {}
    for label in sorted(groups):
        score = metrics.score(categories(groups[label]), weights)
        table[label] = {"images": len(groups[label])} | {
            name: getattr(score, name) for name in bootstrap.MEASURES
        }
    return table


def comparisons(
    greedy: Mapping[Part, Lines], weights: Mapping[str, float], facts: Facts
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Each run but the first of its data set against that one, b - a on the same images.

    Returns:
      Rows of `compare`, and rows {"a", "b", "because"} of pairs that cannot be compared.
    """
    first: dict[str, Part] = {}
    found, refused = [], []
    for part, lines in greedy.items():
        reference = first.setdefault(part.data, part)
        if part == reference:
            continue
        known = [facts.get(str(one), {}) for one in (reference, part)]
        if why := unlike(*known, IMAGES + VERDICTS):
            refused.append({"a": _named(reference), "b": _named(part), "because": why})
        elif row := compare(reference, greedy[reference], part, lines, weights, *known):
            found.append(row)
    return found, refused


def unlike(
    a: Mapping[str, Any], b: Mapping[str, Any], keys: Sequence[str]
) -> dict[str, tuple[Any, Any]]:
    """Which of these facts differ, with both values; none where nothing is known of a side."""
    if not a or not b:
        return {}
    found = differing(*({key: side.get(key) for key in keys} for side in (a, b)))
    # Of two verifiers, or data sets, every option differs.
    other = tuple(key.removesuffix("name") for key in found if key.endswith(".name"))
    return {k: v for k, v in found.items() if k.endswith(".name") or not k.startswith(other)}


def compare(
    a: Part,
    a_lines: Lines,
    b: Part,
    b_lines: Lines,
    weights: Mapping[str, float],
    a_facts: Mapping[str, Any] | None = None,
    b_facts: Mapping[str, Any] | None = None,
) -> dict[str, Any] | None:
    """Paired bootstrap of b - a; None if they have no image in common.

    "differs" is what else differs between the two than the policy and the prompt's name, if they
    were made with something else (facts).
    """
    pairs = paired_lines(a_lines, b_lines)
    if not pairs:
        return None
    sides = [categories([pair[i] for pair in pairs])[:, 0] for i in (0, 1)]
    asking = [key for key in _ASKING if key != "prompt" or a.prompt == b.prompt]
    return {
        "a": _named(a),
        "b": _named(b),
        "images": len(pairs),
        "differs": unlike(a_facts or {}, b_facts or {}, asking),
        "differences": bootstrap.paired(*sides, weights),
    }


def _named(part: Part) -> dict[str, str]:
    return {name: getattr(part, name) for name in ("policy", "data", "prompt")}


def remarks(found: Mapping[str, Any]) -> list[str]:
    """A sentence each: runs that differ in more than the policy, or cannot be compared, and what
    the names of `predict` are worth."""
    said = []
    for row in found["comparisons"]:
        if row["differs"]:
            said.append(f"{_pair(row)} also differ in {_both(row['differs'])}.")
    said += refusals(found["not_compared"])
    for row in found["runs"]:
        worth = "; ".join(
            f"{c['confidence']}: {c['named']:.0%} named, {c['correctness']:.0%} of them correctly"
            for c in row["choices"]
            if c["named"]
        )
        if worth:
            said.append(f"{'/'.join(_key(row))}, names of predict --confidence: {worth}.")
    return said


def refusals(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """A sentence for each pair of "not_compared", and what to do."""
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
    """Both sides of a comparison, by all that is told of them."""
    return " and ".join("/".join(row[side].values()) for side in "ab")


def _both(found: Mapping[str, Sequence[Any]]) -> str:
    return ", ".join(f"{key} ({a!r} and {b!r})" for key, (a, b) in found.items())


def paired_lines(a: Lines, b: Lines) -> list[tuple[Mapping[str, Any], Mapping[str, Any]]]:
    """Lines about the same images with the same true labels, both with a verdict."""

    def keyed(lines):
        found, seen = {}, {}
        for line in lines:
            key = (line["image_id"], line["label"])
            # A mixture may show an image twice.
            seen[key] = seen.get(key, 0) + 1
            found[*key, seen[key]] = line
        return found

    mine, theirs = keyed(a), keyed(b)
    pairs = [(line, theirs[key]) for key, line in mine.items() if key in theirs]
    return [pair for pair in pairs if len(verified(pair)) == 2]


def write(folder: str | os.PathLike, found: Mapping[str, Any]) -> epath.Path:
    """Writes `metrics.json`."""
    path = epath.Path(folder) / FILE
    jsonl.replace(path, json.dumps(found, indent=1) + "\n")
    return path


def score_of(row: Mapping[str, Any]) -> metrics.Score:
    """The `Score` of a run of `metrics.json`."""
    return metrics.Score(**row["score"])
