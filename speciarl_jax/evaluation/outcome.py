"""What became of a policy, in words that the paired tests of `metrics.json` decide."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from speciarl_jax.evaluation import metrics, pairs
from speciarl_jax.evaluation.pairs import run_key

# A difference is stated if the two-sided p of its paired test is below the first, on at least so
# many images. On fewer the bootstrap finds differences too easily.
SIGNIFICANT, MIN_IMAGES = 0.05, 30
RULE = (
    f"A difference is stated where the paired bootstrap finds p < {SIGNIFICANT:g} on at least "
    f"{MIN_IMAGES} images. 'As specific' and 'as often right' mean that it finds none, not that "
    "there is none. No p is corrected for the number of comparisons."
)
_SPECIFIC = {1: "more specific", 0: "as specific", -1: "less specific"}
_RIGHT = {1: "more often right", 0: "as often right", -1: "less often right"}
_NAMES = {"correctness": "correctness", "specificity": "specificity", "hm": "HM"}


class Outcome(NamedTuple):
    """What became of a base."""

    base: Mapping[str, Any]  # row of "runs" in `metrics.json`
    run: Mapping[str, Any]  # likewise
    test: Mapping[str, Any]  # "images" and "differences" of all images that both answered


def tested(row: Mapping[str, Any]) -> Mapping[str, Any]:
    """Returns "images" and "differences" of a comparison, over all images that both answered."""
    return row.get("of_both", row)


def sentence(test: Mapping[str, Any], *, count: bool = True) -> str:
    """Says whether a run is more or less specific, and more or less often right, than another.

    Args:
      test: "images", and "differences" (`bootstrap.paired`) with specificity and correctness.
      count: whether to say how many images there are.
    """
    images = f"these {test['images']:,} images" if count else "these images"
    if test["images"] < MIN_IMAGES:
        return f"too few images to show a difference ({test['images']:,})"
    specific, right = (
        direction(test["differences"][measure]) for measure in ("specificity", "correctness")
    )
    if not specific and not right:
        return f"no difference that {images} can show"
    return f"{_SPECIFIC[specific]}, {_RIGHT[right]}"


def direction(difference: Mapping[str, Any]) -> int:
    """Returns 1 or -1 where a difference of `bootstrap.paired` is significant, else 0."""
    value = difference["value"] if difference["p"] < SIGNIFICANT else 0
    return (value > 0) - (value < 0)


def describe(difference: Mapping[str, Any]) -> str:
    """Writes a difference of `bootstrap.paired` with its interval and p."""
    low, high = difference["interval"]
    p = f"p = {difference['p']:.3f}" if difference["p"] >= 0.001 else "p < .001"
    return f"{difference['value']:+.3f} ({low:+.3f} to {high:+.3f}), {p}"


def evidence(test: Mapping[str, Any]) -> str:
    """Writes the differences behind `sentence`, and the number of images."""
    parts = (f"{_NAMES[name]} {describe(test['differences'][name])}" for name in metrics.MEASURES)
    return f"{'; '.join(parts)}; {test['images']:,} images"


def outcomes(content: Mapping[str, Any]) -> list[Outcome]:
    """Lists what became of the base of each data set and prompt: the last run that has that base.

    Args:
      content: "runs" and "comparisons" as in `metrics.json`. A pair without a test is left out.
    """
    tests = {(run_key(row["a"]), run_key(row["b"])): tested(row) for row in content["comparisons"]}
    keyed = (
        (base, run, tests.get((run_key(base), run_key(run))))
        for base, run in pairs.last_of_each(content["runs"])
    )
    return [Outcome(*one) for one in keyed if one[2]]


def headline(content: Mapping[str, Any]) -> str:
    """Says what became of the base, where that is the same for all data sets and prompts.

    Args:
      content: as for `outcomes`. With several policies beside the base the sentence names the one
        that it is about.

    Returns:
      A sentence without a full stop; "" where there is none.
    """
    found = outcomes(content)
    several = len({run["policy"] for run in content["runs"]} - {pairs.BASE}) > 1
    for count in (True, False):
        said = {
            (one.run["policy"] if several else "", sentence(one.test, count=count)) for one in found
        }
        if len(said) == 1:
            ((policy, text),) = said
            return f"{policy}: {text}" if policy else text[0].upper() + text[1:]
    return ""
