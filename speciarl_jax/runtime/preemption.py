"""Notices by SIGTERM that the machine is about to be taken away, in one process or in several."""

import signal
import threading
from typing import Any

import jax
from jax.experimental import multihost_utils


class Notice:
    """Says at the end of each step whether to save and leave.

    A single process looks for its own SIGTERM. Of several, each that gets one tells the others
    through JAX's coordination service, and all leave after the same step. A context manager: while
    it is open, a SIGTERM does not end the process.
    """

    def __init__(self) -> None:
        self._together = jax.distributed.is_initialized()
        # Python lets no other thread handle signals; a run in one gets no notice.
        self._handles = not self._together and threading.current_thread() is threading.main_thread()
        self._came, self._steps, self._before = False, 0, None

    def __enter__(self) -> "Notice":
        # With several processes, JAX has a handler of its own.
        if self._handles:
            self._before = signal.signal(signal.SIGTERM, self._take)
        return self

    def __exit__(self, *error: Any) -> None:
        if self._handles:
            signal.signal(signal.SIGTERM, self._before)

    def _take(self, *_: Any) -> None:
        self._came = True

    def after_step(self) -> bool:
        """Says whether to save and leave now; all processes must ask once a step."""
        # Not the number of the step in the run: after a SIGTERM before the first step JAX waits
        # for step 1, which a run that goes on from a checkpoint never reaches.
        self._steps += 1
        if not self._together:
            return self._came
        return multihost_utils.reached_preemption_sync_point(self._steps)
