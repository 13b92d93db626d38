"""Reads the verdicts of finished runs, and refuses to set unlike things side by side."""

import functools
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from speciarl_jax.evaluation import comparisons, metrics, predictions, results, seeds
from speciarl_jax.evaluation.predictions import Part
from speciarl_jax.runtime import jsonl
from speciarl_jax.tools.study.plan import Planned


class Answers:
    """The verdicts of the runs of a study; each file is read once, unless it changes."""

    def __init__(self, folder: pathlib.Path):
        """Reads nothing yet."""
        self._folder = folder

    def of_run(self, planned: Planned) -> dict[Part, seeds.Verdicts]:
        """Returns the verdicts of each part of a finished run."""
        path = self._folder / planned.folder / predictions.LINES
        found = _verdicts(path, path.stat().st_mtime_ns, path.stat().st_size)
        return {part: found[part] for part in planned.parts}

    def provenance(self, planned: Planned) -> dict[Part, Mapping[str, Any]]:
        """Returns the provenance of each part of a finished run."""
        known = predictions.read_provenance(self._folder / planned.folder)
        return {part: known[str(part)] for part in planned.parts}

    def frontier(self, planned: Planned, data: str) -> list[dict[str, float]]:
        """Returns what the samples of a finished run agree on about an image set.

        A rule that answers with the most specific name that enough samples support
        (`evaluation.consensus`) needs no training. Images without a name count as not correct.

        Returns:
          "confidence", "correctness", "specificity" and "hm" for each confidence that names
          something; empty without samples or a label tree.
        """
        path = self._folder / planned.folder / results.FILE
        found = []
        for row in jsonl.read_object(path, "delete it")["runs"]:
            if row["data"] != data:
                continue
            for choice in row.get("choices", []):
                if not choice["named"]:
                    continue
                right, weight = choice["named"] * choice["correctness"], choice["specificity"]
                hm = 2 * right * weight / (right + weight) if right else 0.0
                scores = dict(zip(metrics.MEASURES, (right, weight, hm), strict=True))
                found.append({"confidence": choice["confidence"], **scores})
        return found

    def weights(self, planned: Planned) -> dict[str, float]:
        """Returns the weights of specificity of a finished run."""
        path = self._folder / planned.folder / results.FILE
        return metrics.numbers_of(jsonl.read_object(path, "delete it")["weights"])


@functools.lru_cache(maxsize=4096)
def _verdicts(path: pathlib.Path, changed: int, size: int) -> dict[Part, seeds.Verdicts]:
    """Reads a file. `changed` and `size` are only part of the key of the cache."""
    found = predictions.read(path.parent)
    return {part: seeds.verdicts_of(lines) for part, lines in found.items()}


def check(answers: Answers, runs: Sequence[Planned]) -> None:
    """Refuses runs that asked about other images, or were judged or begun otherwise.

    Raises:
      ValueError: images, verifier or labels of two runs differ under one name of a set, or their
        weights of specificity; or the runs of one row had other base weights.
    """
    first: dict[Any, tuple[Planned, Any]] = {}

    def same(key: Any, planned: Planned, value: Any, what: str) -> None:
        other, known = first.setdefault(key, (planned, value))
        if found := comparisons.unlike(known, value, list(known | value)):
            shown = "; ".join(f"{k} is {a!r} and {b!r}" for k, (a, b) in found.items())
            raise ValueError(
                f"{other.name} and {planned.name} {what}: {shown}. Delete the folder of one, and "
                "start again"
            )

    for planned in runs:
        same("weights", planned, answers.weights(planned), "weigh specificity differently")
        for part, known in answers.provenance(planned).items():
            keys = (*comparisons.IMAGES, *comparisons.VERDICTS)
            judged = {key: known.get(key) for key in keys}
            same(part.data, planned, judged, f"differ in the images or verdicts of {part.data!r}")
            began = {k: v for k, v in known["policy"].items() if k not in ("adapters", "scale")}
            where = ("policy", planned.row)
            same(where, planned, json.loads(json.dumps(began)), "began with other weights")
