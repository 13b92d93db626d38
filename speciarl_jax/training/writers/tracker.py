"""Hands metrics and rollouts to a tracking service, so that nothing it does reaches training.

A thread of its own talks to the service: training neither waits for it nor learns of its errors. A
resumed run goes on with the service's run. Each row has a place in the order of the record: the
metrics of a step, its rollouts, the validation after it. What stands before the place that was
reached is not sent again. Rows of `metrics.jsonl` that the service lacks, because it was away or
was named later, are sent at the next start.
"""

import collections
import json
import math
import queue
import threading
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from absl import logging

from speciarl_jax.runtime import jsonl
from speciarl_jax.runtime.messages import first_line
from speciarl_jax.runtime.metric_writer import Writer
from speciarl_jax.training.writers.sample import Sample
from speciarl_jax.training.writers.target import Target

_LONGEST_QUEUE = 1000  # calls that wait for the service
_FINISH = 60.0  # seconds that the end of a run waits for the service
# Places of a step's rows in the order.
_METRICS, _SAMPLES, _VALIDATION = range(3)
_ROWS_OF_A_STEP = 3
_VALIDATION_PREFIX = "validation/"


class Tracker(Protocol):
    """A run of a service.

    Attributes:
      first: place in the order of the first row that the service lacks.
      delay: seconds after which a row that was logged outlives a kill of this process.
    """

    first: int
    delay: float

    def log(self, place: int, step: int, values: Mapping[str, float]) -> None:
        """Sends metrics; `place` grows from call to call."""

    def log_samples(self, place: int, step: int, samples: Sequence[Sample]) -> None:
        """Sends rollouts as a table."""

    def finish(self) -> None:
        """Returns when all was sent."""


class TrackerWriter(Writer):
    """Writes to a service in a thread of its own.

    `WORKDIR/NAME.json` keeps the id of the service's run and the place that was reached.
    """

    def __init__(self, name: str, target: Target, start: Callable[[Target, str, int], Tracker]):
        """Starts the thread, which opens the service's run.

        Args:
          name: of the service.
          start: (target, id of the run, place that was reached) -> its run; the id and the place
            are those of an earlier process of this run, or new and 0.
        """
        self.name, self._target, self._start = name, target, start
        self._path = target.workdir / f"{name}.json"
        self._id, self._next = "", 0
        # Place of the first row that a kill could lose, and those beyond: (when it is safe, place).
        self._safe, self._coming, self._delay = 0, collections.deque(), 0.0
        self._calls: queue.Queue = queue.Queue(_LONGEST_QUEUE)
        self._lock, self._failed = threading.Lock(), False
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def begin(self, rows: Sequence[Mapping[str, Any]]) -> None:
        def resend(tracker):
            for row in rows:
                # The record has null for what is not finite.
                values = {
                    name: math.nan if value is None else value
                    for name, value in row.items()
                    if name not in ("step", "time")
                }
                self._log(tracker, row["step"], values)

        self._put(resend)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        self._put(lambda tracker: self._log(tracker, step, values))

    def write_samples(self, step: int, samples: Sequence[Sample]) -> None:
        place = _ROWS_OF_A_STEP * step + _SAMPLES

        def log(tracker):
            if self._is_new(place):
                tracker.log_samples(place, step, samples)
                self._reached(place)

        self._put(log)

    def flush(self) -> None:
        self._put(lambda tracker: self._save())

    def close(self) -> None:
        self._put(None)
        self._thread.join(_FINISH)
        if self._thread.is_alive():
            self._give_up(f"it has not finished in {_FINISH:g} s")

    def _put(self, call: Callable[[Tracker], None] | None) -> None:
        if self._failed:
            return
        try:
            self._calls.put_nowait(call)
        except queue.Full:
            self._give_up(f"{_LONGEST_QUEUE} rows wait for it")

    def _run(self) -> None:
        try:
            known = jsonl.read_object(self._path, "delete it") or {"id": uuid.uuid4().hex[:16]}
            self._id = known["id"]
            tracker = self._start(self._target, self._id, known.get("next", 0))
            self._next = self._safe = tracker.first
            self._delay = tracker.delay
            self._write()
            while not self._failed:
                try:
                    call = self._calls.get(timeout=self._delay if self._coming else None)
                except queue.Empty:
                    self._save()
                    continue
                if call is None:
                    break
                call(tracker)
            tracker.finish()
            self._safe = self._next
            self._write()
        except Exception as error:
            self._give_up(f"{type(error).__name__}: {first_line(error)}")

    def _log(self, tracker: Tracker, step: int, values: Mapping[str, float]) -> None:
        of_validation = any(name.startswith(_VALIDATION_PREFIX) for name in values)
        place = _ROWS_OF_A_STEP * step + (_VALIDATION if of_validation else _METRICS)
        if self._is_new(place):
            tracker.log(place, step, values)
            self._reached(place)

    def _is_new(self, place: int) -> bool:
        return not self._failed and place >= self._next

    def _reached(self, place: int) -> None:
        self._next = place + 1
        self._coming.append((time.monotonic() + self._delay, self._next))
        if not self._target.in_bucket:  # where it is slow
            self._save()

    def _save(self) -> None:
        """Notes the place that was reached, as far as a kill loses nothing before it."""
        before = self._safe
        while self._coming and self._coming[0][0] <= time.monotonic():
            self._safe = self._coming.popleft()[1]
        if self._safe != before:
            self._write()

    def _write(self) -> None:
        jsonl.replace(self._path, json.dumps({"id": self._id, "next": self._safe}) + "\n")

    def _give_up(self, why: str) -> None:
        with self._lock:
            first, self._failed = not self._failed, True
        if first:
            logging.warning(
                "%s gets nothing more from this process: %s. The run goes on, metrics.jsonl has "
                "everything, and the next start sends what is missing",
                *(self.name, why),
            )
