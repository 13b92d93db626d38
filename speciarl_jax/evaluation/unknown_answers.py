"""Answers that a label tree has no name for: how many, and which are the most frequent."""

import collections
from collections.abc import Mapping, Sequence
from typing import Any

from speciarl_jax.verifiers import parsing
from speciarl_jax.verifiers.label_tree.reasons import Reasons
from speciarl_jax.verifiers.taxonomy import Taxonomy

_MOST = 10


def find(responses: Sequence[str], labels: Taxonomy) -> dict[str, Any]:
    """Counts the answers that are no name of any label, and do not decline.

    Args:
      responses: at least one whole response, tags included. One without a readable answer is not
        unknown.
      labels: the tree.

    Returns:
      "share", of all responses; "most_frequent", the ten most frequent ones as [answer, count].
      Answers have the form of `parsing.normalize`; the alphabet orders equally frequent ones.
    """
    reasons = Reasons(labels)
    said = collections.Counter(map(parsing.extract, responses))
    unknown: collections.Counter[str] = collections.Counter()
    for answer, count in said.items():
        if not reasons.knows(answer):
            unknown[parsing.normalize(answer)] += count
    top = sorted(unknown.items(), key=lambda item: (-item[1], item[0]))[:_MOST]
    return {
        "share": sum(unknown.values()) / len(responses),
        "most_frequent": [list(item) for item in top],
    }


def describe(run: Mapping[str, Any]) -> str:
    """Writes a sentence about a run of `metrics.json`; "" if it has no answers without a name."""
    found = run.get("unknown_answers")
    if not found or not found["share"]:
        return ""
    text = f"the tree knows no name for {found['share']:.1%} of the answers"
    most = ", ".join(f"{_short(answer)!r} ({count})" for answer, count in found["most_frequent"])
    return f"{text}; most often: {most}."


def _short(answer: str, most: int = 60) -> str:
    return answer if len(answer) <= most else answer[: most - 1] + "…"
