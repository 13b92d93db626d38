"""Metrics to a JSON-lines file and to TensorBoard."""

import json
import pathlib
import time
from collections.abc import Mapping

import numpy as np
import tensorboardX


class MetricWriter:
    """Writes named numbers of a step; only the first process of a run makes one."""

    def __init__(self, workdir: str | pathlib.Path, *, first_step: int = 0):
        """Opens `metrics.jsonl` and `tensorboard/` in `workdir`.

        Args:
          workdir: an existing folder.
          first_step: rows of this step and later are dropped: a resumed run writes them again.
        """
        self._path = pathlib.Path(workdir) / "metrics.jsonl"
        if self._path.exists():
            rows = self._path.read_text().splitlines()
            kept = [row for row in rows if _step(row) is not None and _step(row) < first_step]
            self._path.write_text("".join(row + "\n" for row in kept))
        self._file = self._path.open("a")
        # A killed run must not lose rows that lie before its last checkpoint: flush often.
        self._board = tensorboardX.SummaryWriter(
            str(pathlib.Path(workdir) / "tensorboard"), purge_step=first_step, flush_secs=1
        )

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Appends one row; `values` maps `stage/name` to a number."""
        row = {name: float(np.asarray(value)) for name, value in values.items()}
        self._file.write(json.dumps({"step": step, "time": time.time(), **row}) + "\n")
        self._file.flush()
        for name, value in row.items():
            self._board.add_scalar(name, value, step)

    def close(self) -> None:
        """Flushes both."""
        self._file.close()
        self._board.close()


def _step(row: str) -> int | None:
    """The step of a row, or None for one that a kill cut short."""
    try:
        return json.loads(row)["step"]
    except (json.JSONDecodeError, KeyError, TypeError):
        return None
