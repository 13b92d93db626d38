"""Notices that a run has to leave: SIGTERM, or Ctrl-C; in one process or in several."""

import os
import signal
import threading
from typing import Any

import jax
from jax.experimental import multihost_utils

from speciarl_jax.runtime import exit_codes, interrupts, multihost


class Notice:
    """Says at the end of each step whether to save and leave.

    A SIGTERM says that the machine is about to be taken away, a Ctrl-C (SIGINT) that a person wants
    to stop. A single process looks for its own. Of several, each that gets one tells the others
    through JAX's coordination service, and all leave after the same step. A context manager: while
    it is open, neither ends the process, but for a second Ctrl-C.
    """

    def __init__(self) -> None:
        self._together = jax.distributed.is_initialized()
        self._numbers: list[int] = []
        # Python lets no other thread handle signals; a run in one gets no notice.
        if threading.current_thread() is threading.main_thread():
            if not self._together:  # With several processes, JAX has a handler of its own.
                self._numbers.append(signal.SIGTERM)
            if interrupts.is_heeded():
                self._numbers.append(signal.SIGINT)
        self._came, self._steps = set(), 0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "Notice":
        self._before = {number: signal.signal(number, self._take) for number in self._numbers}
        return self

    def __exit__(self, kind: Any, *error: Any) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        # One that came after the last step was looked at.
        if kind is None and signal.SIGINT in self._came:
            raise KeyboardInterrupt
        if kind is None and self._came:
            os.kill(os.getpid(), signal.SIGTERM)

    def _take(self, number: int, _: Any) -> None:
        self._came.add(number)
        if number == signal.SIGINT:
            # The second one ends the run at once, as it does outside training.
            signal.signal(number, self._before[number])
            if self._together:
                os.kill(os.getpid(), signal.SIGTERM)  # which JAX tells the other processes

    def after_step(self) -> bool:
        """Says whether to save and leave now; all processes must ask once a step."""
        # Not the number of the step in the run: after a SIGTERM before the first step JAX waits
        # for step 1, which a run that goes on from a checkpoint never reaches.
        self._steps += 1
        if not self._together:
            return bool(self._came)
        return multihost_utils.reached_preemption_sync_point(self._steps)

    def error(self, saved: str) -> exit_codes.Preempted:
        """Returns the error to leave with, when all is saved; all processes must ask together.

        Args:
          saved: what is saved, for the message.
        """
        if any(multihost.allgather(signal.SIGINT in self._came)):
            return exit_codes.Interrupted(
                f"interrupted: {saved}; the same command goes on from there"
            )
        return exit_codes.Preempted(f"preempted: {saved}; start again to go on")
