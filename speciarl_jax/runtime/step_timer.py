"""Times the stages of a training step without making the devices wait for the host."""

import collections
import queue
import threading
import time
from typing import Any

import jax

# Stages of a step in their order; a stage that is done several times in a step is added up.
STAGES = ("rollout", "verify", "update")


def ignore(stage: str, arrays: Any = None) -> None:
    """Takes the place of `StepTimer.stage_done` in programs that nobody times."""
    del stage, arrays


class StepTimer:
    """Measures the stages of each step.

    A thread waits for the arrays that end a stage, in the order in which the devices make them, and
    reads the clock; the main thread goes on. A stage lasts from the end of the one before, or from
    the call of `begin` if that was later. In the second case the devices were idle in between: that
    is `time/device_idle`. A step that is one compiled program has no stages, only `time/step` and
    `time/device_idle`.
    """

    def __init__(self) -> None:
        self._events: queue.Queue[tuple[str, Any, float] | None] = queue.Queue()
        self._rows: queue.Queue[dict[str, float]] = queue.Queue()
        threading.Thread(target=self._measure, name="step_timer", daemon=True).start()

    def begin(self) -> None:
        """Starts a step: its batch is there, and it is handed to the devices now."""
        self.stage_done("begin")

    def stage_done(self, stage: str, arrays: Any = None) -> None:
        """Ends a stage when these arrays exist; without arrays, now."""
        self._events.put((stage, arrays, time.perf_counter()))

    def end(self, arrays: Any) -> None:
        """Ends the step when these arrays exist."""
        self.stage_done("end", arrays)

    def rest(self) -> None:
        """Ends what is no part of any step, such as a validation: the next step begins now."""
        self.stage_done("rest")

    def row(self) -> dict[str, float]:
        """Returns the metrics of the oldest step not returned yet, in seconds; waits for its end.

        `time/step` lasts from the end of the step before, and `time/device_idle` is the part of it
        in which the devices had nothing to do.
        """
        return self._rows.get()

    def close(self) -> None:
        """Ends the thread, once it has measured what was reported so far."""
        self._events.put(None)

    def _measure(self) -> None:
        last, begun, idle = None, 0.0, 0.0
        spent: collections.Counter[str] = collections.Counter()
        while (event := self._events.get()) is not None:
            stage, arrays, now = event
            if stage == "rest":
                last = now
                continue
            if stage == "begin":
                last = now if last is None else last  # nothing is idle before the first step
                begun, idle = last, max(0.0, now - last)
                last, spent = max(last, now), collections.Counter()
                continue
            try:
                jax.block_until_ready(arrays)
            except Exception:
                pass  # The main thread meets the same error and stops the run.
            # A stage without arrays ended when it was reported.
            done = max(last, now if arrays is None else time.perf_counter())
            if stage != "end":
                spent[stage] += done - last
                last = done
                continue
            if spent:
                spent["update"] += done - last
            last = done
            row = {f"time/{name}": spent[name] for name in STAGES if name in spent}
            self._rows.put({"time/step": done - begun, "time/device_idle": idle} | row)
