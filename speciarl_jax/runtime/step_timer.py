"""Where the seconds of a step go, without making the devices wait for the host."""

import collections
import queue
import threading
import time
from typing import Any

import jax

# The marks of a step, in their order; several rounds of a mark are added up.
STAGES = ("rollout", "verify", "update")


def ignore(stage: str, arrays: Any = None) -> None:
    """For programs that nobody times."""
    del stage, arrays


class StepTimer:
    """Times of the stages of each step.

    A thread waits for the arrays that end a stage, in the order in which the devices make them, and
    looks at the clock. The main thread goes on handing out work meanwhile. A stage lasts from the
    end of the one before, or from when the step was handed out if that was later: then the devices
    stood idle in between, which is `time/device_idle`.

    Where a step is one compiled program, its stages cannot be told apart: there are only
    `time/step` and `time/device_idle`.
    """

    def __init__(self) -> None:
        self._marks: queue.Queue[tuple[str, Any, float] | None] = queue.Queue()
        self._rows: queue.Queue[dict[str, float]] = queue.Queue()
        self._thread = threading.Thread(target=self._look, name="stopwatch", daemon=True)
        self._thread.start()

    def begin(self) -> None:
        """The batch of a step is there, and the step is handed to the devices now."""
        self._marks.put(("begin", None, time.perf_counter()))

    def stage_done(self, stage: str, arrays: Any = None) -> None:
        """A stage ends when these arrays exist; without any, now."""
        self._marks.put((stage, arrays, time.perf_counter()))

    def end(self, arrays: Any) -> None:
        """The step ends when these arrays exist."""
        self._marks.put(("end", arrays, time.perf_counter()))

    def row(self) -> dict[str, float]:
        """Metrics of the oldest step not asked for yet, in seconds; waits for its end.

        `time/step` lasts from the end of the step before, and `time/device_idle` is the part of it
        in which the devices had nothing to do.
        """
        return self._rows.get()

    def close(self) -> None:
        """Ends the thread, once it has seen what was marked so far."""
        self._marks.put(None)

    def _look(self) -> None:
        last, begun, wait = None, 0.0, 0.0
        spent: collections.Counter[str] = collections.Counter()
        while (found := self._marks.get()) is not None:
            stage, arrays, now = found
            if stage == "begin":
                # The first step of a process waits for nobody.
                last = now if last is None else last
                begun, wait = last, max(0.0, now - last)
                last, spent = max(last, now), collections.Counter()
                continue
            try:
                jax.block_until_ready(arrays)
            except Exception:
                pass  # The main thread meets the same error and stops the run; rows go on.
            # What was marked without arrays ended when it was marked.
            done = max(last, now if arrays is None else time.perf_counter())
            if stage != "end":
                spent[stage] += done - last
                last = done
                continue
            if spent:
                spent["update"] += done - last
            last = done
            row = {f"time/{name}": spent[name] for name in STAGES if name in spent}
            self._rows.put({"time/step": done - begun, "time/device_idle": wait} | row)
