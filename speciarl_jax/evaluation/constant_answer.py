"""The best score of a policy that does not look: one answer about all images of a data set."""

import collections
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from speciarl_jax.evaluation import metrics
from speciarl_jax.evaluation.evaluator import Judged
from speciarl_jax.verifiers import parsing
from speciarl_jax.verifiers.category import Category
from speciarl_jax.verifiers.taxonomy import Taxonomy


def best(
    leaf_ids: Sequence[str], labels: Taxonomy, weights: Mapping[str, float]
) -> dict[str, Any] | None:
    """Finds the name of the tree that scores best as the answer about every image.

    Args:
      leaf_ids: the true label of each image.
      labels: the tree; every name of it is tried.
      weights: as for `metrics.score`.

    Returns:
      {"answer", "correctness", "specificity", "hm", "histogram"} of the name with the largest HM.
      Of equal ones the first in the tree counts. None if no name is correct about any image.

    Raises:
      ValueError: the tree lacks a label.
    """
    counts: dict[bytes, np.ndarray] = {}
    for leaf_id, images in collections.Counter(leaf_ids).items():
        for key, (category, _) in labels.relations[labels.leaf_index(leaf_id)].items():
            row = counts.setdefault(key, np.zeros(len(Category), np.int64))
            row[category - min(Category)] += images
    if not counts:
        return None
    counts_RK = np.stack(list(counts.values()))
    # About all other images the name is wrong.
    counts_RK[:, Category.WRONG - min(Category)] += len(leaf_ids) - counts_RK.sum(axis=1)
    found = metrics.measures(counts_RK, weights)
    place = int(np.argmax(found["hm"]))
    names = (category.name.lower() for category in Category)
    return {
        "answer": list(counts)[place].decode("utf-8", "replace"),
        **{name: float(value[place]) for name, value in found.items()},
        "histogram": dict(zip(names, counts_RK[place].tolist(), strict=True)),
    }


def scores(runs: Sequence[Mapping[str, Any]]) -> dict[str, metrics.Score]:
    """Lists the best constant answers of runs, one of each data set: that of its first run.

    Args:
      runs: of `metrics.json`.

    Returns:
      Name as it stands in a table, with the data set if there are several -> score. Data sets whose
      labels are no tree are left out.
    """
    found: dict[str, Mapping[str, Any]] = {}
    for run in runs:
        if run.get("constant_answer"):
            found.setdefault(run["data"], run["constant_answer"])
    several = len({run["data"] for run in runs}) > 1
    return {
        f'best constant answer "{row["answer"]}"' + (f", {data}" if several else ""): _score(row)
        for data, row in found.items()
    }


def _score(row: Mapping[str, Any]) -> metrics.Score:
    return metrics.Score(**{name: value for name, value in row.items() if name != "answer"})


def shares(parts: Sequence[Judged]) -> dict[str, float]:
    """Computes how constant greedy answers are.

    Args:
      parts: answers about all images, one an image.

    Returns:
      "most_common_answer", the share of the answer that most images get among those that can be
      read, and "most_common_label", the share of the images of the most common label.
    """
    said = [parsing.answer_number(text) for part in parts for (text,) in part.responses]
    labels = [row["label_id"] for part in parts for row in part.rows]

    def largest(values):
        return max(collections.Counter(values).values(), default=0) / max(len(values), 1)

    return {
        "most_common_answer": largest([number for number in said if number]),
        "most_common_label": largest(labels),
    }
