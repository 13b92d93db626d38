"""Profiles a run that is under way, on demand.

    kill -USR1 PID                       the process with this number
    touch WORKDIR/profile_now            process 0

Either traces the next `config.train.profile_steps` steps and writes what the devices' memory holds
to `WORKDIR/profiles`. TensorBoard's profile plug-in, or https://ui.perfetto.dev, reads the trace;
`pprof` reads `memory.prof`.
"""

import pathlib
import signal
import tempfile
import threading
import time
from typing import Any

import jax
from absl import logging
from etils import epath

REQUEST = "profile_now"
# Seconds between two looks for the file, which may lie in a bucket.
_INTERVAL = 5.0


class Profiler:
    """Traces steps on request. A context manager, which takes SIGUSR1 while it is open."""

    def __init__(self, workdir: epath.PathLike, steps: int):
        """Traces nothing yet.

        Args:
          workdir: may receive the request, and receives `profiles`.
        """
        self._workdir, self._steps = epath.Path(workdir), steps
        self._asked, self._left, self._looked = False, 0, float("-inf")
        # Python lets no other thread handle signals; a run in one only looks for the file.
        self._handles = threading.current_thread() is threading.main_thread()

    def __enter__(self) -> "Profiler":
        if self._handles:
            self._before = signal.signal(signal.SIGUSR1, self._ask)
        return self

    def __exit__(self, *error: Any) -> None:
        if self._handles:
            signal.signal(signal.SIGUSR1, self._before)
        if self._left:
            self._write()

    def _ask(self, *_: Any) -> None:
        self._asked = True

    def before_step(self, number: int) -> None:
        """Begins a trace if one was asked for."""
        if self._left:
            return
        if jax.process_index() == 0 and time.monotonic() - self._looked > _INTERVAL:
            self._looked = time.monotonic()
            request = self._workdir / REQUEST
            if request.exists():
                request.unlink()
                self._asked = True
        if not self._asked:
            return
        self._asked, self._left = False, self._steps
        self._name = f"step_{number}_process_{jax.process_index()}"
        # JAX writes traces to local disks only.
        self._local = tempfile.TemporaryDirectory(prefix="profile_")
        logging.warning("profiling %d steps from step %d on", self._steps, number)
        options = jax.profiler.ProfileOptions()
        options.python_tracer_level = 0  # tracing every Python call would slow the host down
        jax.profiler.start_trace(self._local.name, profiler_options=options)

    def after_step(self, values: Any) -> None:
        """Counts a traced step, and writes the trace after the last.

        Args:
          values: arrays that the step made; they end the trace when they exist.
        """
        if not self._left:
            return
        self._left -= 1
        if not self._left:
            jax.block_until_ready(values)
            self._write()

    def _write(self) -> None:
        self._left, local = 0, pathlib.Path(self._local.name)
        jax.profiler.stop_trace()
        jax.profiler.save_device_memory_profile(local / "memory.prof")
        folder = self._workdir / "profiles" / self._name
        for path in sorted(local.rglob("*")):
            if path.is_file():
                target = folder / path.relative_to(local)
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(path.read_bytes())
        self._local.cleanup()
        logging.warning("wrote %s", folder)
