"""Notices that the machine is about to be taken away: SIGTERM, in one process or in several."""

import signal
import threading
from typing import Any

import jax
from jax.experimental import multihost_utils


class Notice:
    """Whether to save and leave, asked at the end of each step.

    One process looks for its own SIGTERM. Of several, each that gets one tells the others through
    JAX's coordination service, and all find the same step to leave after. A context manager: while
    it is open, a SIGTERM does not end the process.
    """

    def __init__(self) -> None:
        self._together = jax.distributed.is_initialized()
        # Python lets no other thread handle signals; a run in one is not told.
        self._handles = not self._together and threading.current_thread() is threading.main_thread()
        self._came, self._steps, self._before = False, 0, None

    def __enter__(self) -> "Notice":
        # JAX's own handler stands where there are several processes.
        if self._handles:
            self._before = signal.signal(signal.SIGTERM, self._take)
        return self

    def __exit__(self, *error: Any) -> None:
        if self._handles:
            signal.signal(signal.SIGTERM, self._before)

    def _take(self, *_: Any) -> None:
        self._came = True

    def after_step(self) -> bool:
        """Whether to save and leave now; to be asked once a step, by all processes."""
        # Not the number of the step: one that came before the first step names the step after the
        # 0 that JAX begins with, which a run that goes on from a checkpoint never reaches.
        self._steps += 1
        if not self._together:
            return self._came
        return multihost_utils.reached_preemption_sync_point(self._steps)
