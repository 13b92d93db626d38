"""Logs a training run while it runs: metric files, samples and a progress bar."""

import collections
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
from etils import epath
from tqdm import tqdm

from speciarl_jax.experiment.run import Run
from speciarl_jax.runtime import step_timer
from speciarl_jax.runtime.metric_writer import MetricWriter
from speciarl_jax.training import rl_step, sample_logger
from speciarl_jax.training.health import REWARD_NOT_FINITE, Facts, Health
from speciarl_jax.training.writers.target import Target, open_writers

# Metrics of validations are called validation/SET/MEASURE, and each of their rows has its time.
VALIDATION, VALIDATION_TIME = "validation/", "time/validation"


class TrainLogger:
    """Writes metric files and the progress bar; only process 0 writes.

    It reads a step's metrics when the next step has been handed to the devices, so that they never
    wait for the host.
    """

    def __init__(
        self,
        run: Run,
        workdir: epath.Path,
        *,
        done: int,
        known: Mapping[str, Any],
        timer: step_timer.StepTimer,
        on_first_step: Callable[[], None],
        validated: int | None = None,
    ):
        """Opens the files.

        Args:
          done: steps that earlier processes of this run finished.
          known: what `get_state` returned when the checkpoint was written that the run goes on
            from; empty at the beginning.
          timer: has a row for each step.
          on_first_step: is called when the first step of this process has finished.
          validated: the last step whose validation stays, -1 for none; later rows of validation are
            dropped, for they are written again. None: all stay.
        """
        config = run.config
        self._timer, self._kept = timer, config.checkpoint
        of_validation = self._kept.best_metric.startswith(VALIDATION)
        self._counts = self._kept.keep_best > 0 and not of_validation
        # Sum and number of the values of `config.checkpoint.best_metric` since the last checkpoint.
        self._window = tuple(known.get("window", (0.0, 0))) if self._counts else (0.0, 0)
        self._health = Health(Facts.of(run), known.get("health"))
        self._train, self._first, self._on_first_step = config.train, done + 1, on_first_step
        self._reward = config.reward.name
        self._waiting: collections.deque[tuple[int, Mapping, Sequence]] = collections.deque()
        alone = jax.process_index() == 0

        def written_again(row: Mapping[str, Any]) -> bool:
            return validated is not None and row["step"] > validated and VALIDATION_TIME in row

        self._writer = self._samples = None
        self._said = self._validated = ""
        if alone:
            self._writer = MetricWriter(
                workdir,
                first_step=done + 1,
                written_again=written_again,
                writers=open_writers(Target(workdir, config, done + 1)),
            )
            path = workdir / sample_logger.FILE
            self._samples = sample_logger.SampleLogger(path, done + 1, run, self._writer)
        self._bar = tqdm(
            total=config.train.steps,
            initial=done,
            desc="training",
            disable=not alone,
            smoothing=0.05,
            dynamic_ncols=True,
        )

    def add(self, number: int, values: Mapping[str, Any], rows: Sequence[Mapping]) -> None:
        """Takes the metrics and the logged rows of step `number`; records those of the step before.

        Raises:
          FloatingPointError: gradient or reward was not finite too often in a row.
        """
        self._waiting.append((number, values, rows))
        while len(self._waiting) > 1:
            self._record()
        if number == self._first:
            self.flush()
            self._on_first_step()

    def flush(self) -> None:
        """Records all that was taken."""
        while self._waiting:
            self._record()
        if self._writer:
            self._writer.flush()
            self._samples.flush()

    def add_validation(self, number: int, row: dict[str, float]) -> None:
        """Writes the scores of a validation after step `number`, and shows them in the bar.

        Args:
          row: scores of all sets, and the time that they took.
        """
        self.flush()
        row = row | self._health.after_validation(number, row)
        self._validated = validation_progress(row)
        if self._writer:
            self._writer.write(number, row)
            self._writer.flush()
        self._bar.set_postfix_str((self._said + self._validated).removeprefix(" | "))

    def mean(self, *, begin_anew: bool) -> float | None:
        """Returns the mean of `checkpoint.best_metric` since the last checkpoint, or None."""
        total, count = self._window
        if begin_anew:
            self._window = (0.0, 0)
        return total / count if count else None

    def get_state(self) -> dict[str, Any]:
        """Returns what a checkpoint keeps of what was recorded."""
        return {"window": self._window, "health": self._health.get_state()}

    def close(self) -> None:
        """Closes bar and files."""
        self._bar.close()
        if self._writer:
            self._samples.flush()
            self._writer.close()

    def _record(self):
        number, values, rows = self._waiting.popleft()
        samples = values.get(rl_step.SAMPLES)
        numbers = {name: value for name, value in values.items() if name != rl_step.SAMPLES}
        # All in one transfer.
        row = {name: float(value) for name, value in jax.device_get(numbers).items()}
        row |= self._timer.row()
        if self._counts:
            if (name := self._kept.best_metric) not in row:
                raise ValueError(
                    f"config.checkpoint.best_metric is {name!r}, which is no metric of a step; "
                    f"choose one of {sorted(row)}"
                )
            if math.isfinite(row[name]):
                self._window = (self._window[0] + row[name], self._window[1] + 1)
        row |= self._health.after_step(number, row)
        due = number % self._train.log_every == 0 or number == self._train.steps
        if self._writer and due:
            self._writer.write(number, row)
        if self._samples and samples is not None:
            self._samples.write(number, samples, rows)
        self._said = progress(row)
        self._bar.set_postfix_str(self._said + self._validated, refresh=False)
        self._bar.update()
        self._stop_if_nothing_is_finite(number, row)

    def _stop_if_nothing_is_finite(self, number: int, row: Mapping[str, float]) -> None:
        most = self._train.max_skipped
        if row["update/skipped_in_a_row"] >= most:
            raise FloatingPointError(
                f"step {number}: the gradient was not finite in the last {most} updates "
                "(config.train.max_skipped); lower config.optimizer.learning_rate, or start from "
                "an earlier checkpoint"
            )
        if max(map(self._health.in_a_row, REWARD_NOT_FINITE)) >= most:
            raise FloatingPointError(
                f"step {number}: rewards were not finite in the last {most} steps "
                f"(config.train.max_skipped); mend speciarl_jax/rl/rewards/{self._reward}.py "
                "(config.reward.name)"
            )


def progress(row: Mapping[str, float]) -> str:
    """Reward, shares of the categories and KL, short enough for a progress bar; of supervised
    training the loss."""
    if "reward/mean" not in row:
        return f"loss {row['update/loss']:.3f}"
    short = {
        "more_specific": "S+",
        "specific": "S",
        "less_specific": "S-",
        "generic": "G",
        "abstain": "A",
        "wrong": "W",
    }
    shares = " ".join(f"{mark} {row[f'verify/{name}']:.2f}" for name, mark in short.items())
    kl = f" KL {row['update/kl']:.3f}" if "update/kl" in row else ""
    return f"reward {row['reward/mean']:.2f} | {shares}{kl}"


def validation_progress(row: Mapping[str, float]) -> str:
    """Harmonic mean and correctness of each validation set, for the progress bar."""
    sets = [name.split("/")[1] for name in row if name.endswith("/hm")]
    return "".join(
        f" | {name} HM {row[f'{VALIDATION}{name}/hm']:.2f}"
        f" C {row[f'{VALIDATION}{name}/correctness']:.2f}"
        for name in sets
    )
