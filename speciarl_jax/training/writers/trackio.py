"""Trackio, a tracker that keeps its runs on this machine: `pip install trackio`."""

from collections.abc import Mapping, Sequence

from speciarl_jax.runtime.messages import first_line
from speciarl_jax.runtime.metric_writer import Writer
from speciarl_jax.training.writers import run_config
from speciarl_jax.training.writers.sample import COLUMNS, Sample
from speciarl_jax.training.writers.target import Target
from speciarl_jax.training.writers.tracker import TrackerWriter

_NAME = "trackio"


def check(target: Target) -> None:
    """Refuses a missing package (ValueError)."""
    try:
        import trackio  # noqa: F401
    except ImportError as error:
        raise ValueError(
            f"config.logging.writers names 'trackio', which cannot be imported "
            f"({first_line(error)}); pip install trackio, or take it out"
        ) from None


def create(target: Target) -> Writer:
    """Starts the run, or goes on with the one that the workdir knows."""
    return TrackerWriter(_NAME, target, TrackioRun)


class TrackioRun:
    """A run of Trackio; its files are where its own setting TRACKIO_DIR says."""

    delay = 0.0

    def __init__(self, target: Target, run_id: str, reached: int):
        """Starts or resumes the run.

        Args:
          run_id: makes the name of the run the only one of its kind.
          reached: place of the first row that earlier processes have not handed over.
        """
        import trackio

        self._run = trackio.init(
            project=target.config.logging.project,
            name=f"{target.name}-{run_id[:8]}",
            resume="allow",
            config=run_config.public(target.config),
            embed=False,
            auto_log_gpu=False,
            auto_log_cpu=False,
        )
        self.first = reached
        self._table, self._image = trackio.Table, trackio.Image

    def log(self, place: int, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def log_samples(self, place: int, step: int, samples: Sequence[Sample]) -> None:
        rows = []
        for sample in samples:
            image = None if sample.image is None else self._image(sample.image)
            rows += sample.rows(image)
        self._run.log({"rollouts": self._table(columns=list(COLUMNS), data=rows)}, step=step)

    def finish(self) -> None:
        self._run.finish()
