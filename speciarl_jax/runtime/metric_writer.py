"""Writes metrics to a JSON-lines file and to TensorBoard."""

import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import tensorboardX
from etils import epath

from speciarl_jax.runtime.jsonl import JsonLines


class MetricWriter:
    """Writes named numbers of a step; only the first process of a run makes one.

    Attributes:
      board: the TensorBoard files, for what is no number.
    """

    def __init__(
        self,
        workdir: epath.PathLike,
        *,
        first_step: int = 0,
        written_again: Callable[[Mapping[str, Any]], bool] = lambda row: False,
    ):
        """Opens `metrics.jsonl` and `tensorboard/` in `workdir`.

        Args:
          workdir: an existing folder, or a URL (gs://...).
          first_step: rows of this step and later are dropped: a resumed run writes them again.
          written_again: tells of an earlier row whether a resumed run writes it again, too.

        Raises:
          ValueError: two of the rows that stay are of one step.
        """
        path = epath.Path(workdir) / "metrics.jsonl"
        self._lines = JsonLines(path, first_step, written_again, once=True)
        # A killed run must not lose rows that lie before its last checkpoint: flush often.
        self.board = tensorboardX.SummaryWriter(
            str(epath.Path(workdir) / "tensorboard"), purge_step=first_step, flush_secs=1
        )

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Appends one row; `values` maps `stage/name` to a number, null if it is not finite."""
        row = {name: float(np.asarray(value)) for name, value in values.items()}
        self._lines.add({"step": step, "time": time.time(), **row})
        for name, value in row.items():
            self.board.add_scalar(name, value, step)

    def flush(self) -> None:
        """Returns when all rows are written: before a checkpoint, or a killed run loses some."""
        self._lines.flush()

    def close(self) -> None:
        """Flushes both."""
        self._lines.flush()
        self.board.close()
