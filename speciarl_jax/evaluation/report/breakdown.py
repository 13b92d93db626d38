"""Scores of groups of images: by difficulty and by domain, on the images that all runs answered."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from speciarl_jax.evaluation import bootstrap, comparisons, metrics, outcome, pairs
from speciarl_jax.evaluation.pairs import run_key
from speciarl_jax.evaluation.predictions import SAMPLES, categories
from speciarl_jax.evaluation.report.folder import Folder

# Names of groups by the share of samples that are right, from the easiest.
_SHARES = ("all are right", "half or more are right", "fewer than half are right", "none is right")
# Line of the reference -> the name of its group, None without one.
Grouping = Callable[[comparisons.ImageKey, Mapping[str, Any]], str | None]


class Row(NamedTuple):
    """A run in a group of images."""

    run: Mapping[str, Any]  # of "runs" in `metrics.json`
    score: metrics.Score
    # Against the reference, as `bootstrap.paired`; without measures that are not defined, and empty
    # in small groups.
    differences: Mapping[str, Mapping[str, Any]]

    @property
    def wrong(self) -> float:
        """Share of wrong answers."""
        return self.score.histogram["wrong"] / sum(self.score.histogram.values())

    def value(self, measure: str) -> float | None:
        """Returns a measure; None where no answer is correct, so that it is not defined."""
        undefined = measure != "correctness" and not self.score.correctness
        return None if undefined else getattr(self.score, measure)


class Group(NamedTuple):
    """Images that share a property."""

    name: str
    images: int
    rows: Sequence[Row]


class Table(NamedTuple):
    """The groups of one property."""

    title: str
    note: str
    groups: Sequence[Group]


def tables(
    content: Folder, data: str, prompt: str, domains: Mapping[str, str] | None = None
) -> list[Table]:
    """Scores the runs about a data set under a prompt in groups of its images.

    Args:
      domains: label id -> its group in the label tree, for images whose lines do not tell.

    Returns:
      Tables by difficulty and by domain, as far as these are known and make several groups.
    """
    weights = metrics.numbers_of(content.metrics.get("weights") or {})
    refused = [run_key(row["b"]) for row in content.metrics["not_compared"]]
    runs = [
        run
        for run in content.metrics["runs"]
        if run_key(run)[1:] == (data, prompt) and run_key(run) not in refused
    ]
    lines = {run_key(run): comparisons.by_image(content.greedy(run)) for run in runs}
    runs = [run for run in runs if lines[run_key(run)]]
    if not weights or not runs:
        return []
    reference = next((run for run in runs if run["policy"] == pairs.BASE), runs[0])
    ordered = [reference, *(run for run in runs if run is not reference)]
    mine = {run_key(run): lines[run_key(run)] for run in ordered}
    shared = set.intersection(*(set(found) for found in mine.values()))
    found = []
    for title, note, order, grouping in _properties(content, reference, domains or {}):
        groups: dict[str, list[comparisons.ImageKey]] = {}
        for key, line in mine[run_key(reference)].items():
            if key in shared and (name := grouping(key, line)):
                groups.setdefault(name, []).append(key)
        if len(groups) > 1:
            scored = [_group(*group, ordered, mine, weights) for group in groups.items()]
            found.append(Table(title, note, sorted(scored, key=order)))
    return found


def _group(name, keys, runs, lines, weights) -> Group:
    """Scores all runs about some images; the first run is the reference of the others."""
    found = [categories([lines[run_key(run)][key] for key in keys])[:, 0] for run in runs]
    rows = []
    for run, category_B in zip(runs, found, strict=True):
        score, differences = metrics.score(category_B, weights), {}
        if run is not runs[0] and len(keys) >= outcome.MIN_IMAGES:
            differences = bootstrap.paired(found[0], category_B, weights)
            if not (score.correctness and rows[0].score.correctness):
                differences = {"correctness": differences["correctness"]}
        rows.append(Row(run, score, differences))
    return Group(name, len(keys), rows)


def _properties(
    content: Folder, reference: Mapping[str, Any], domains: Mapping[str, str]
) -> list[tuple[str, str, Callable[[Group], Any], Grouping]]:
    """Lists what images are grouped by: title, note, key to sort the groups by, grouping."""

    def stated(key, line):
        return str(line["difficulty"]) if line.get("difficulty") else None

    def domain(key, line):
        return line.get("generic") or domains.get(line.get("label_id"))

    note = "The domain of an image is the group of its true label in the label tree."
    return [
        _by_reference(content, reference),
        ("By the difficulty that the data set states", "", _from_the_easiest, stated),
        ("By domain", note, lambda group: group.name, domain),
    ]


def _by_reference(content, reference):
    """Groups images by how often the reference is right about them: its samples, or its answer."""
    policy, key = reference["policy"], run_key(reference)
    rows = content.predictions
    sampled = [row for row in rows if row["decoding"] == SAMPLES and run_key(row) == key]
    share = {key: _share_right(line) for key, line in comparisons.by_image(sampled).items()}
    if share:
        note = (
            f"Difficulty is how many of the {len(sampled[0]['responses'])} samples of {policy} "
            "about an image are right. It is the same for all policies, and does not depend on the "
            "greedy answers that are scored."
        )
        return (
            f"By difficulty: the samples of {policy}",
            note,
            lambda group: _SHARES.index(group.name),
            lambda key, line: _level(share[key]) if key in share else None,
        )
    note = (
        f"Images that the greedy answer of {policy} is right about, and the others. The first "
        "leave only room to fall, the second only room to rise; with samples (--best_of) the "
        "groups would not depend on the answers that are scored."
    )
    return (
        f"By difficulty: is {policy} right?",
        note,
        _from_the_easiest,
        lambda key, line: "right" if _share_right(line) else "not right",
    )


def _from_the_easiest(group: Group) -> tuple[float, str]:
    return -group.rows[0].score.correctness, group.name


def _share_right(line: Mapping[str, Any]) -> float:
    """Returns the share of the answers of a line that are right."""
    found = categories([line])[0]
    return sum(category in metrics.CORRECT for category in found) / len(found)


def _level(share: float) -> str:
    every, many, few, none = _SHARES
    return none if share == 0 else every if share == 1 else few if share < 0.5 else many
