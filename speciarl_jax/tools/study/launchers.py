"""Where runs are run: here one after the other, or as jobs of a cluster."""

import ast
import pathlib
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

from speciarl_jax.tools.study import execute
from speciarl_jax.tools.study.execute import Result
from speciarl_jax.tools.study.plan import Planned

# Seconds between two looks at jobs.
_LOOK_EVERY = 5.0


class Launcher(Protocol):
    """Runs runs."""

    def __call__(
        self, folder: pathlib.Path, runs: Sequence[Planned], begun: Callable[[Planned], None]
    ) -> Iterator[tuple[Planned, Result]]:
        """Yields each run when it has ended; calls `begun` when it is started or submitted."""


def local(
    folder: pathlib.Path, runs: Sequence[Planned], begun: Callable[[Planned], None]
) -> Iterator[tuple[Planned, Result]]:
    """Runs here, one after the other."""
    for planned in runs:
        begun(planned)
        yield planned, execute.run(folder, planned)


class Job:
    """What a job of the cluster does; submitted again where its time is over, and then resumes."""

    def __init__(self, folder: pathlib.Path, planned: Planned):
        """Notes what to run."""
        self.folder, self.planned = folder, planned

    def __call__(self) -> Result:
        """Runs it."""
        return execute.run(self.folder, self.planned)

    def checkpoint(self, *_: Any) -> Any:
        """Is called by submitit before a job is taken away; its next job goes on."""
        import submitit

        return submitit.helpers.DelayedSubmission(self)


class Submitit:
    """Submits all runs as jobs by submitit, SLURM's unless another cluster is named."""

    def __init__(self, cluster: str = "slurm", options: str = "", look_every: float = _LOOK_EVERY):
        """Checks the options; submits nothing yet.

        Args:
          cluster: of `submitit.AutoExecutor`: "slurm", or for tests "local" or "debug".
          options: its parameters, "timeout_min=120,slurm_partition=gpu,gpus_per_node=1".
          look_every: seconds between two looks at the jobs.

        Raises:
          ValueError: submitit is not installed, or an option is not NAME=VALUE.
        """
        try:
            import submitit
        except ImportError:
            raise ValueError(
                "--launcher=submitit needs a package that is not installed: pip install submitit"
            ) from None
        self._submitit, self._cluster = submitit, cluster
        self._options, self._look_every = parse_options(options), look_every

    def __call__(
        self, folder: pathlib.Path, runs: Sequence[Planned], begun: Callable[[Planned], None]
    ) -> Iterator[tuple[Planned, Result]]:
        """Submits all runs, and yields each when its job has ended.

        Jobs go on if this program is ended; started again, it finds what they have done.

        Raises:
          ValueError: the cluster does not know an option.
        """
        if not runs:
            return
        executor = self._submitit.AutoExecutor(folder=folder / "jobs", cluster=self._cluster)
        try:
            executor.update_parameters(**self._options)
        except (NameError, TypeError) as error:
            raise ValueError(f"--job_options={self._options}: {error}") from None
        jobs = []
        for planned in runs:
            begun(planned)
            jobs.append((planned, executor.submit(Job(folder, planned))))
        while jobs:
            waiting = []
            for planned, job in jobs:
                if job.done():
                    yield planned, self._result(job)
                else:
                    waiting.append((planned, job))
            if waiting and len(waiting) == len(jobs):
                time.sleep(self._look_every)
            jobs = waiting

    def _result(self, job: Any) -> Result:
        error = job.exception()
        if error is None:
            return job.result()
        lines = str(error).strip().splitlines()[-15:]
        log = str(job.paths.stderr)
        return Result("failed", exit_code=1, lines=lines, log=log)


def parse_options(text: str) -> dict[str, Any]:
    """Reads "NAME=VALUE,NAME=VALUE"; numbers become numbers. ValueError: it is not of that form."""
    found: dict[str, Any] = {}
    for part in filter(None, text.split(",")):
        name, equals, value = part.partition("=")
        if not equals or not name.isidentifier():
            raise ValueError(f"--job_options has {part!r}; write NAME=VALUE,NAME=VALUE")
        try:
            found[name] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            found[name] = value
    return found
