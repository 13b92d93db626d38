"""Metrics to a JSON-lines file and to TensorBoard."""

import json
import time
from collections.abc import Mapping

import numpy as np
import tensorboardX
from etils import epath

_REWRITE_EVERY = 30  # seconds


class MetricWriter:
    """Writes named numbers of a step; only the first process of a run makes one."""

    def __init__(self, workdir: epath.PathLike, *, first_step: int = 0):
        """Opens `metrics.jsonl` and `tensorboard/` in `workdir`.

        Args:
          workdir: an existing folder, or a URL (gs://...).
          first_step: rows of this step and later are dropped: a resumed run writes them again.
        """
        self._path = epath.Path(workdir) / "metrics.jsonl"
        self._rows: list[str] = []
        if self._path.exists():
            rows = self._path.read_text().splitlines()
            self._rows = [row for row in rows if _step(row) is not None and _step(row) < first_step]
            self._rewrite()
        # Nothing can be appended to an object in a bucket: it is written anew, now and then.
        self._file = None if "://" in str(workdir) else self._path.open("a")
        self._written = time.monotonic()
        # A killed run must not lose rows that lie before its last checkpoint: flush often.
        self._board = tensorboardX.SummaryWriter(
            str(epath.Path(workdir) / "tensorboard"), purge_step=first_step, flush_secs=1
        )

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Appends one row; `values` maps `stage/name` to a number."""
        row = {name: float(np.asarray(value)) for name, value in values.items()}
        line = json.dumps({"step": step, "time": time.time(), **row})
        if self._file:
            self._file.write(line + "\n")
            self._file.flush()
        else:
            self._rows.append(line)
            if time.monotonic() - self._written > _REWRITE_EVERY:
                self._rewrite()
        for name, value in row.items():
            self._board.add_scalar(name, value, step)

    def flush(self) -> None:
        """Returns when all rows are written: before a checkpoint, or a killed run loses some."""
        if not self._file:
            self._rewrite()

    def close(self) -> None:
        """Flushes both."""
        self.flush()
        if self._file:
            self._file.close()
        self._board.close()

    def _rewrite(self) -> None:
        self._path.write_text("".join(row + "\n" for row in self._rows))
        self._written = time.monotonic()


def _step(row: str) -> int | None:
    """The step of a row, or None for one that a kill cut short."""
    try:
        return json.loads(row)["step"]
    except (json.JSONDecodeError, KeyError, TypeError):
        return None
