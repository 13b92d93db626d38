"""Measures a run over all processes that worked on it one after the other."""

import time
from collections.abc import Mapping
from typing import Any


class RunClock:
    """Counts the seconds of a run, with loading, evaluation and processes that were killed.

    A process counts up to the checkpoint that the next one goes on from.

    Attributes:
      earlier: seconds of the processes before this one.
      first_step: seconds until the first step of the run was done; None before, or if not known.
      moved: this process has finished a step.
    """

    def __init__(self) -> None:
        """Starts to count."""
        self._begun = time.time()
        self.earlier, self.first_step, self.moved = 0.0, None, False

    def seconds(self) -> float:
        """Returns the seconds of all processes so far."""
        return self.earlier + time.time() - self._begun

    def step_done(self, number: int) -> None:
        """Notes that step `number` of the run is done, the first of this process."""
        self.moved = True
        if number == 1:
            self.first_step = self.seconds()

    def get_state(self) -> dict[str, Any]:
        """Returns what a checkpoint keeps; JSON-able."""
        return {"seconds": self.seconds(), "first_step_seconds": self.first_step}

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Goes on from a checkpoint; those of older versions lack the first step."""
        self.earlier, self.first_step = state["seconds"], state.get("first_step_seconds")

    def summary(self, steps: int, before: Mapping[str, Any]) -> dict[str, Any]:
        """Returns `steps`, `wall_seconds` and `first_step_seconds` of a finished run.

        Args:
          before: summary that the run has already, or nothing. Its times stay if it is of as many
            steps and this process took none.
        """
        found = {
            "steps": steps,
            "wall_seconds": round(self.seconds(), 1),
            "first_step_seconds": None if self.first_step is None else round(self.first_step, 1),
        }
        if self.moved or before.get("steps") != steps:
            return found
        return found | {name: before[name] for name in found if before.get(name) is not None}
