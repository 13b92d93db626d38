"""Writes metrics to a JSON-lines file, which is the record, and hands them to further writers."""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from absl import logging
from etils import epath

from speciarl_jax.runtime import jsonl
from speciarl_jax.runtime.jsonl import JsonLines
from speciarl_jax.runtime.messages import first_line


class Writer:
    """A place that metrics go to as well, for instance TensorBoard.

    Its methods may raise anything: `MetricWriter` warns, and goes on without this writer.

    Attributes:
      name: of the place, for messages.
    """

    name = "writer"

    def begin(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Takes the rows of `metrics.jsonl` that earlier processes of the run wrote."""

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Takes the metrics of a step, or of the validation after it."""

    def write_samples(self, step: int, samples: Sequence[Any]) -> None:
        """Takes rollouts of a step; for training `speciarl_jax.training.writers.sample.Sample`."""

    def flush(self) -> None:
        """Is called before a checkpoint: what was taken will not be handed over again."""

    def close(self) -> None:
        """Writes what is left; later calls are errors."""


class MetricWriter:
    """Writes named numbers of a step; only the first process of a run makes one."""

    def __init__(
        self,
        workdir: epath.PathLike,
        *,
        first_step: int = 0,
        written_again: Callable[[Mapping[str, Any]], bool] = lambda row: False,
        writers: Sequence[Writer] = (),
    ):
        """Opens `metrics.jsonl` in `workdir`.

        Args:
          workdir: an existing folder, or a URL (gs://...).
          first_step: rows of this step and later are dropped: a resumed run writes them again.
          written_again: tells of an earlier row whether a resumed run writes it again, too.
          writers: get everything, too, and are closed with this one. One that fails is left out
            from then on, with a warning.

        Raises:
          ValueError: two of the rows that stay are of one step.
        """
        path = epath.Path(workdir) / "metrics.jsonl"
        self._lines = JsonLines(path, first_step, written_again, once=True)
        self._writers = list(writers)
        if self._writers and (rows := jsonl.read(path)):
            self._each(lambda writer: writer.begin(rows))

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Appends one row; `values` maps `stage/name` to a number, null if it is not finite."""
        row = {name: float(np.asarray(value)) for name, value in values.items()}
        self._lines.add({"step": step, "time": time.time(), **row})
        self._each(lambda writer: writer.write(step, row))

    def write_samples(self, step: int, samples: Sequence[Any]) -> None:
        """Hands rollouts to the further writers; `metrics.jsonl` holds none."""
        self._each(lambda writer: writer.write_samples(step, samples))

    def flush(self) -> None:
        """Returns when all rows are written: before a checkpoint, or a killed run loses some."""
        self._lines.flush()
        self._each(lambda writer: writer.flush())

    def close(self) -> None:
        """Flushes and closes all."""
        self._lines.flush()
        self._each(lambda writer: writer.close())

    def _each(self, call: Callable[[Writer], None]) -> None:
        for writer in list(self._writers):
            try:
                call(writer)
            except Exception as error:
                self._writers.remove(writer)
                logging.warning(
                    "%s failed, and gets nothing from now on; metrics.jsonl has everything: %s: %s",
                    *(writer.name, type(error).__name__, first_line(error)),
                )
