"""What an evaluation folder holds: the files that `train` and `evaluate` write."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath

from speciarl_jax import metrics
from speciarl_jax.verify.category import Category

_RANK = {c.name.lower(): int(c) for c in Category}


@dataclasses.dataclass(frozen=True)
class Folder:
    """The content of an evaluation folder; what a run did not write is empty.

    Attributes:
      name: of the folder.
      config: `config.json`.
      summary: `summary.json`.
      metrics: `metrics.json`: "runs" and "comparisons".
      predictions: rows of `predictions.jsonl`: one a policy, data set, prompt, decoding, picture.
      history: rows of `metrics.jsonl`.
      samples: rows of `rollout_samples.jsonl`.
    """

    name: str
    config: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    summary: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    metrics: Mapping[str, Any] = dataclasses.field(
        default_factory=lambda: {"runs": [], "comparisons": []}
    )
    predictions: Sequence[Mapping[str, Any]] = ()
    history: Sequence[Mapping[str, Any]] = ()
    samples: Sequence[Mapping[str, Any]] = ()


def read(workdir: epath.Path) -> Folder:
    """Reads a folder of `train` or `evaluate`.

    Without `metrics.json`, as while a run goes on, the scores are computed from the answers.

    Raises:
      ValueError: the folder holds neither answers nor metrics, or a file in it is damaged.
    """
    config = _read_json(workdir / "config.json", {})
    predictions = _rows(workdir / "predictions.jsonl")
    found = _read_json(workdir / "metrics.json", None)
    if found is None:
        # Without a configuration nobody knows the weights of the categories.
        weights = config["evaluation"]["weights"] if config else None
        found = {"runs": runs_of(predictions, weights) if weights else [], "comparisons": []}
    history = _rows(workdir / "metrics.jsonl")
    if not (found["runs"] or history):
        raise ValueError(
            f"{workdir} holds nothing to report on; give the --workdir of a run of python -m "
            "speciarl_jax.train or speciarl_jax.evaluate"
        )
    return Folder(
        name=workdir.resolve().name,
        config=config,
        summary=_read_json(workdir / "summary.json", {}),
        metrics={"comparisons": [], **found},
        predictions=predictions,
        history=history,
        samples=_rows(workdir / "rollout_samples.jsonl"),
    )


def read_lines(path: epath.Path) -> list[dict[str, Any]]:
    """Rows of a JSON-lines file."""
    # Not splitlines: a model may say U+2028, which ends no line of JSON.
    return [json.loads(line) for line in path.read_text().split("\n") if line.strip()]


def run_key(row: Mapping[str, Any]) -> tuple[str, str, str]:
    """(policy, data, prompt) of a row of predictions or metrics."""
    return row["policy"], row["data"], row["prompt"]


def runs_of(
    predictions: Sequence[Mapping[str, Any]], weights: Mapping[str, float]
) -> list[dict[str, Any]]:
    """Entries of "runs" in `metrics.json`, without what needs samples or resampling.

    Args:
      predictions: rows; only greedy ones with a verdict are scored.
      weights: of the correct categories, for `metrics.score`.
    """
    groups: dict[tuple, list[Mapping[str, Any]]] = {}
    for row in predictions:
        if row["decoding"] == "greedy":
            groups.setdefault(run_key(row), []).append(row)
    runs = []
    for (policy, data, prompt), rows in groups.items():
        judged = [row for row in rows if row["categories"][0] in _RANK]
        if not judged:
            continue
        score = _score(judged, weights)
        classes = sorted({row["label"] for row in judged})
        by_class = {label: [r for r in judged if r["label"] == label] for label in classes}
        runs.append(
            {
                "policy": policy,
                "data": data,
                "prompt": prompt,
                "pictures": len(rows),
                "score": score,
                "intervals": {},
                "abstain": score["histogram"]["abstain"] / len(judged),
                "unparsed": score["histogram"]["unparsed"] / len(judged),
                "unverified": 1 - len(judged) / len(rows),
                "best_of": [],
                "calibration": [],
                "by_class": {
                    label: {"pictures": len(own)}
                    | {k: v for k, v in _score(own, weights).items() if k != "histogram"}
                    for label, own in by_class.items()
                },
            }
        )
    return runs


def _score(rows, weights):
    categories = np.array([_RANK[row["categories"][0]] for row in rows])
    return dataclasses.asdict(metrics.score(categories, weights))


def _read_json(path, missing):
    if not path.exists():
        return missing
    try:
        return json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is no JSON ({error}); run what wrote it again") from None


def _rows(path):
    """Rows of a file that may be missing, or whose last line a kill may have cut short."""
    if not path.exists():
        return []
    lines = [line for line in path.read_text().split("\n") if line.strip()]
    rows = []
    for number, line in enumerate(lines, 1):
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError as error:
            if number < len(lines):
                raise ValueError(
                    f"{path}: row {number} is no JSON ({error}); run what wrote it again"
                ) from None
    return rows
