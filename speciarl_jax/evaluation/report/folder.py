"""What an evaluation folder holds: the files that `train` and `evaluate` write."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath

from speciarl_jax.evaluation import metrics, results
from speciarl_jax.evaluation import predictions as predictions_lib
from speciarl_jax.evaluation.pairs import run_key
from speciarl_jax.runtime import jsonl, renamed

_REMEDY = "run what wrote it again"  # where a file is damaged


@dataclasses.dataclass(frozen=True)
class Folder:
    """The content of an evaluation folder; what a run did not write is empty."""

    name: str
    # Data set -> the configuration that it was asked about with, the latest last.
    configs: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)
    # `config.json` of a training run.
    training: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    summary: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # `summary.json`
    # `metrics.json`: "weights" where known, "runs", "comparisons" and "not_compared".
    metrics: Mapping[str, Any] = dataclasses.field(
        default_factory=lambda: {"runs": [], "comparisons": [], "not_compared": []}
    )
    predictions: Sequence[Mapping[str, Any]] = ()  # rows of `predictions.jsonl`
    history: Sequence[Mapping[str, Any]] = ()  # rows of `metrics.jsonl`
    samples: Sequence[Mapping[str, Any]] = ()  # rows of `rollout_samples.jsonl`
    # Name of a part -> what its answers and verdicts were made with.
    provenance: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)

    @property
    def minutes(self) -> float | None:
        """How long the run took; None where `summary.json` does not tell."""
        seconds = self.summary.get("wall_seconds", math.nan)
        known = self.summary.get("steps") is not None and math.isfinite(seconds)
        return seconds / 60 if known else None

    def greedy(self, run: Mapping[str, Any]) -> list[Mapping[str, Any]]:
        """Returns the lines of greedy answers behind an entry of "runs"."""
        key = run_key(run)
        return [
            row
            for row in self.predictions
            if row["decoding"] == predictions_lib.GREEDY and run_key(row) == key
        ]


def read(workdir: epath.Path) -> Folder:
    """Reads a folder of `train` or `evaluate`.

    Without `metrics.json`, as while a run goes on, the scores are computed from the answers.

    Raises:
      ValueError: the folder holds neither answers nor metrics, or a file in it is damaged.
    """
    parts, configs = predictions_lib.read(workdir), predictions_lib.read_configs(workdir)
    trained = read_training(workdir)
    if trained:
        # For training runs of old, which kept nothing else.
        configs = {trained["data"]["name"]: trained} | configs
    found = renamed.results(jsonl.read_object(workdir / results.FILE, _REMEDY)) or _metrics(
        parts, configs
    )
    history = read_history(workdir)
    if not (found["runs"] or history):
        raise ValueError(
            f"{workdir} holds nothing to report on; give the --workdir of a run of python -m "
            "speciarl_jax.train or speciarl_jax.evaluate"
        )
    return Folder(
        name=workdir.resolve().name,
        configs=configs,
        training=trained,
        summary=jsonl.read_object(workdir / "summary.json", _REMEDY),
        metrics={"comparisons": [], "not_compared": [], **found},
        predictions=[row for lines in parts.values() for row in lines],
        history=history,
        samples=jsonl.read(workdir / "rollout_samples.jsonl"),
        provenance=predictions_lib.read_provenance(workdir),
    )


def read_history(workdir: epath.Path) -> list[dict[str, float]]:
    """Reads `metrics.jsonl`; what is no finite number is left out, and so is a row without a step.

    Raises:
      ValueError: the file is damaged.
    """
    rows = jsonl.read(workdir / "metrics.jsonl", once=jsonl.STEPS)
    known = [
        {
            name: value
            for name, value in renamed.metrics(row).items()
            if isinstance(value, int | float) and math.isfinite(value)
        }
        for row in rows
    ]
    return [row for row in known if "step" in row]


def read_training(workdir: epath.Path) -> dict[str, Any]:
    """Reads the configuration of a training run; empty where there is none."""
    return renamed.config(jsonl.read_object(workdir / "config.json", _REMEDY))


def _metrics(parts, configs):
    """Computes what `metrics.json` will hold once the evaluation has ended."""
    if not configs:
        # Nobody knows the weights of the categories.
        return {"runs": [], "comparisons": []}
    latest = list(configs.values())[-1]
    weights = metrics.configured_weights(latest["evaluation"]["weights"])
    return results.of_parts(parts, weights)
