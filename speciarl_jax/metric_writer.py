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
        drop_rows(self._path, first_step)
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

    @property
    def board(self) -> tensorboardX.SummaryWriter:
        """The TensorBoard files, for what is no number."""
        return self._board

    def close(self) -> None:
        """Flushes both."""
        self._file.close()
        self._board.close()


def drop_rows(path: pathlib.Path, first_step: int) -> None:
    """Keeps the rows of a JSON-lines file whose `step` is before `first_step`; none is no error."""
    if path.exists():
        rows = path.read_text().splitlines()
        kept = [row for row in rows if _step(row) is not None and _step(row) < first_step]
        path.write_text("".join(row + "\n" for row in kept))


def _step(row: str) -> int | None:
    """The step of a row, or None for one that a kill cut short."""
    try:
        return json.loads(row)["step"]
    except (json.JSONDecodeError, KeyError, TypeError):
        return None
