"""Paired comparisons of runs: all differences of a data set are over one set of images."""

import collections
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from speciarl_jax.evaluation import bootstrap, pairs
from speciarl_jax.evaluation.predictions import Part, categories, is_given, verified
from speciarl_jax.runtime import fingerprint

Lines = Sequence[Mapping[str, Any]]
# Keys of provenance. Scores of runs that differ in these cannot be compared.
IMAGES, VERDICTS = ("data", "images", "seed"), ("verifier", "labels")
# Runs may differ in these on purpose; a comparison then says so.
_ASKING = ("prompt", "max_pixels", "max_tokens")
_RUN = ("policy", "data", "prompt")
# Image and true label of a line, and which of several lines about both it is.
ImageKey = tuple[int, str, int]


class Side(NamedTuple):
    """A run as a side of a comparison."""

    name: Mapping[str, str]  # "policy", "data" and "prompt", and what else names it
    lines: Lines  # of its greedy answers
    provenance: Mapping[str, Any]  # of these; empty where it is not known


def named(part: Part) -> dict[str, str]:
    """Returns "policy", "data" and "prompt" of a part."""
    return {name: getattr(part, name) for name in _RUN}


def sides_of(
    greedy: Mapping[Part, Lines], provenances: Mapping[str, Mapping[str, Any]], **more: str
) -> list[Side]:
    """Makes a `Side` of each part with greedy answers of which at least one has a verdict.

    Args:
      provenances: name of a part -> its provenance.
      **more: what names all of them besides.
    """
    return [
        Side({**more, **named(part)}, lines, provenances.get(str(part), {}))
        for part, lines in greedy.items()
        if verified(lines)
    ]


def of_runs(
    sides: Sequence[Side],
) -> tuple[list[tuple[Side, Side]], list[dict[str, Any]]]:
    """Pairs each run with the base of its data set, and with the base of its data set and prompt.

    Where there is no policy `pairs.BASE`, the first run takes its place.

    Returns:
      Pairs (reference, run), and rows {"a", "b", "because"} of pairs that cannot be compared.
    """
    found, refused = [], []
    for b in sides:
        references = []
        for keys in (("data",), ("data", "prompt")):
            alike = [a for a in sides if all(a.name[key] == b.name[key] for key in keys)]
            bases = [a for a in alike if a.name["policy"] == pairs.BASE]
            references.append((bases or alike)[0])
        for a in {id(one): one for one in references if one is not b}.values():
            if why := unlike(a.provenance, b.provenance, IMAGES + VERDICTS):
                refused.append({"a": dict(a.name), "b": dict(b.name), "because": why})
            else:
                found.append((a, b))
    return found, refused


def unlike(
    a: Mapping[str, Any], b: Mapping[str, Any], keys: Sequence[str]
) -> dict[str, tuple[Any, Any]]:
    """Compares some keys of two provenances (`fingerprint.differences`).

    Returns:
      The differences. None if either provenance is unknown (empty). Of two verifiers or data sets
      of different names only the names, as their options have nothing in common.
    """
    if not a or not b:
        return {}
    found = fingerprint.differences(*({key: side.get(key) for key in keys} for side in (a, b)))
    other = tuple(key.removesuffix("name") for key in found if key.endswith(".name"))
    return {k: v for k, v in found.items() if k.endswith(".name") or not k.startswith(other)}


def of_pairs(
    found: Sequence[tuple[Side, Side]], weights: Mapping[str, float]
) -> list[dict[str, Any]]:
    """Tests b - a of each pair by a paired bootstrap (`compare`).

    All pairs of a data set are tested on the same images: those that each run in a pair has a
    verdict for.

    Returns:
      Rows of `compare`; pairs without a common image are left out.
    """
    among = {}
    for data in {a.name["data"] for a, _ in found}:
        runs = {id(side): side for pair in found for side in pair if side.name["data"] == data}
        among[data] = common(side.lines for side in runs.values())
    rows = (compare(a, b, weights, among[a.name["data"]]) for a, b in found)
    return [row for row in rows if row]


def compare(
    a: Side, b: Side, weights: Mapping[str, float], among: Iterable[ImageKey]
) -> dict[str, Any] | None:
    """Tests b - a by a paired bootstrap over the images that all runs have verdicts for.

    Args:
      among: these images; of both runs.

    Returns:
      {"a", "b", "images", "differs", "differences" (`bootstrap.paired`; empty without images)};
      None if the two have no image in common. Where the two have more images in common than all
      runs, "of_both" holds "images" and "differences" over these. "differs" holds what differs
      beside the policy and the name of the prompt. It is empty where another model gave the
      answers, as nobody knows how that model was asked.
    """
    mine, theirs = by_image(a.lines), by_image(b.lines)
    both = [key for key in mine if key in theirs]
    if not both:
        return None
    among = set(among)

    def tested(keys):
        if not keys:
            return {"images": 0, "differences": {}}
        sides = [categories([lines[key] for key in keys])[:, 0] for lines in (mine, theirs)]
        return {"images": len(keys), "differences": bootstrap.paired(*sides, weights)}

    asking = [key for key in _ASKING if key != "prompt" or a.name["prompt"] == b.name["prompt"]]
    if is_given(a.provenance) or is_given(b.provenance):
        asking = []
    shared = [key for key in both if key in among]
    differs = unlike(a.provenance, b.provenance, asking)
    row = {"a": dict(a.name), "b": dict(b.name), "differs": differs} | tested(shared)
    return row if len(shared) == len(both) else row | {"of_both": tested(both)}


def by_image(lines: Lines) -> dict[ImageKey, Mapping[str, Any]]:
    """Finds the lines with a verdict by image and true label; a mixture may show an image twice."""
    found, seen = {}, collections.Counter()
    for line in lines:
        key = (line["image_id"], line["label"])
        seen[key] += 1
        found[*key, seen[key]] = line
    return {key: line for key, line in found.items() if verified([line])}


def common(runs: Iterable[Lines]) -> set[ImageKey]:
    """Returns the images that all runs have a verdict for."""
    keys = [by_image(lines).keys() for lines in runs]
    return set(keys[0]).intersection(*keys[1:]) if keys else set()


def paired_lines(a: Lines, b: Lines) -> list[tuple[Mapping[str, Any], Mapping[str, Any]]]:
    """Pairs the lines about the same image and true label that both have a verdict."""
    mine, theirs = by_image(a), by_image(b)
    return [(line, theirs[key]) for key, line in mine.items() if key in theirs]
