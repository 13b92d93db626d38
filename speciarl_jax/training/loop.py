"""The loop over steps: draw a batch, take a step, validate, save; and resume where it stopped."""

import collections
import contextlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import ml_collections
import numpy as np
from absl import logging
from etils import epath
from flax import nnx

from speciarl_jax.data import pipeline
from speciarl_jax.experiment import host_verification
from speciarl_jax.experiment.run import Run, fingerprint
from speciarl_jax.models.prompt_batch import PromptBatch
from speciarl_jax.runtime import preemption, step_timer
from speciarl_jax.runtime.checkpoint import Checkpoints
from speciarl_jax.runtime.profiler import Profiler
from speciarl_jax.runtime.wall_clock import RunClock
from speciarl_jax.training import dynamic_sampling, steps, train_data
from speciarl_jax.training.state import TrainState
from speciarl_jax.training.train_logger import TrainLogger
from speciarl_jax.training.validation import Validation


def train(
    run: Run,
    workdir: epath.PathLike,
    *,
    clock: RunClock | None = None,
    allow_config_change: bool = False,
    on_first_step: Callable[[], None] = lambda: None,
    validation: Validation | None = None,
    started: steps.Started | None = None,
) -> tuple[nnx.State, float]:
    """Runs the loop over steps; resumes where an earlier run in `workdir` stopped.

    Args:
      clock: counts the seconds of this process; from here on when None.
      allow_config_change: go on from a checkpoint of another configuration.
      on_first_step: is called when the first step of this process has finished.
      validation: of this run; made here when None.
      started: of this run, likewise.

    Returns:
      The trained adapters, of the best checkpoint if `validation.takes_best`, and the seconds that
      earlier processes of this run took.

    Raises:
      ValueError: the checkpoint belongs to another configuration, or to a later step than the last.
      FloatingPointError: gradient or reward was not finite too often in a row.
      host_verification.JudgeUnavailable: too many rollouts of a step, or answers of a validation,
        have no verdict; a checkpoint of the last step before was saved.
      exit_codes.Preempted: the machine is about to be taken away, or a person pressed Ctrl-C
        (`Interrupted`); a checkpoint was saved.
      exit_codes.StorageError: a checkpoint cannot be written.
    """
    config, workdir, clock = run.config, epath.Path(workdir), clock or RunClock()
    validation = validation or Validation(run)
    optimizer, state, state_sharding, programs = started or steps.start(run)
    with contextlib.ExitStack() as stack:
        checkpoints = stack.enter_context(Checkpoints(workdir / "checkpoints", **config.checkpoint))
        place = _Place(run, checkpoints, clock, validation)
        done, state = place.resume(state, allow_change=allow_config_change)
        refuse_fewer_steps(done, config, workdir)
        timer = step_timer.StepTimer()
        stack.callback(timer.close)
        step = steps.train_step(run, optimizer, state_sharding, timer.stage_done, programs)

        def first_step_done() -> None:
            clock.step_done(done + 1)
            on_first_step()

        place.logger = logger = TrainLogger(
            run,
            workdir,
            done=done,
            known=place.known,
            timer=timer,
            on_first_step=first_step_done,
            validated=validation.validated,
        )
        stack.callback(logger.close)
        profiler = stack.enter_context(Profiler(workdir, config.train.profile_steps))
        notice = stack.enter_context(preemption.Notice())
        telling = (logger, timer, notice)
        validation.catch_up(done, state.lora, checkpoints, *telling)
        place.note()
        for number in range(done + 1, config.train.steps + 1):
            if validation.stopped:
                break
            profiler.before_step(number)
            state = place.step(number, state, step, timer)
            profiler.after_step(state.step)
            if notice.after_step():
                error = notice.error(f"step {number} of {config.train.steps} is saved")
            else:
                error = validation.after_step(number, state.lora, *telling)
            place.save(number, state, error)
        checkpoints.wait()  # while `notice` keeps signals from ending the process
        state = validation.best_state(checkpoints, state)
    return state.lora, clock.earlier


class _Place:
    """Where a run is, beside its state: in the data, in its time, in its validations and logs.

    Attributes:
      known: what the checkpoint that the run goes on from says of it; empty at the beginning.
      logger: of the run; set before the first step.
    """

    def __init__(self, run: Run, checkpoints: Checkpoints, clock: RunClock, validation: Validation):
        self.known: Mapping[str, Any] = {}
        self.logger: TrainLogger
        self._run, self._checkpoints = run, checkpoints
        self._clock, self._validation = clock, validation
        self._batches = train_data.training_batches(run)
        # Batches that no finished step has learned from, with the stream's state before each.
        self._drawn: collections.deque[tuple[list[Any], dict[str, Any]]] = collections.deque()
        self._fingerprint = fingerprint(run)
        self._saved: dict[str, Any] = {}

    def resume(self, state: TrainState, *, allow_change: bool) -> tuple[int, TrainState]:
        """Goes to the newest checkpoint, if there is one.

        Args:
          state: before the first step.
          allow_change: as for `Checkpoints.resume`.

        Returns:
          The number of finished steps, and the state after them.
        """
        found = self._checkpoints.resume(state, self._fingerprint, allow_change=allow_change)
        if found is None:
            return 0, state
        done, state, self.known = found
        # Checkpoints of older versions, and those that `convert` makes, say less.
        was = self.known.get("processes", jax.process_count())
        stream = pipeline.state_for(self.known["stream"], was, jax.process_count())
        self._batches.set_state(stream)
        self._clock.set_state(self.known)
        self._validation.set_state(self.known)
        logging.info("resumed after step %d", done)
        return done, state

    def note(self) -> None:
        """Notes the place, for the checkpoint of a step after which nothing else can be saved."""
        self._saved = {
            "stream": self._stream(),
            "processes": jax.process_count(),
            **self.logger.get_state(),
            **self._clock.get_state(),
            **self._validation.get_state(),
        }

    def step(
        self, number: int, state: TrainState, step: Callable, timer: step_timer.StepTimer
    ) -> TrainState:
        """Draws what a step needs, takes it and logs it.

        Raises:
          host_verification.JudgeUnavailable: after a checkpoint of the step before.
        """
        run, ahead = self._run, self._run.config.train.ahead
        takes_several = ahead or dynamic_sampling.is_on(run)
        batch = self._next_batch if takes_several else self._next_batch()
        timer.begin()
        try:
            state, values = step(state, run.base, run.verifier, batch, np.uint32(number))
        except host_verification.JudgeUnavailable:
            # The metrics of the step before are recorded only now.
            self.logger.flush()
            saved = self._saved | self.logger.get_state()
            self._checkpoints.save(number - 1, state, saved, self._fingerprint, force=True)
            raise
        timer.end(values)
        rows: list[Any] = []
        while len(self._drawn) > (ahead and number < run.config.train.steps):
            rows += self._drawn.popleft()[0]
        seen = train_data.images_seen(run, self._stream())
        self.logger.add(number, values | run.place_metrics() | seen, rows)
        return state

    def _next_batch(self) -> PromptBatch:
        """Draws a batch and puts it on the devices."""
        stream, rows = self._batches.get_state(), []
        self._drawn.append((rows, stream))
        return train_data.on_devices(self._run, self._batches, rows)

    def _stream(self) -> dict[str, Any]:
        """Returns where the data stream was before the first batch that is not learned from."""
        return self._drawn[0][1] if self._drawn else self._batches.get_state()

    def save(self, number: int, state: TrainState, error: Exception | None) -> None:
        """Saves a checkpoint if that is due, and raises `error` when that is done."""
        last = number == self._run.config.train.steps
        due = last or self._validation.is_due(number) or self._checkpoints.due(number)
        metric = None
        if due or error:
            # A run that goes on from a checkpoint writes the rows after it, and no earlier.
            self.logger.flush()
            mean = self.logger.mean(begin_anew=due)
            metric = self._validation.metric_of(number) if mean is None else mean
        self.note()
        self._checkpoints.save(
            number,
            state,
            self._saved,
            self._fingerprint,
            metric=metric,
            force=due or error is not None,
        )
        if error:
            self._checkpoints.wait()
            raise error


def refuse_fewer_steps(
    done: int | None, config: ml_collections.ConfigDict, workdir: epath.Path
) -> None:
    """Refuses a run that has done more steps than it is to do: its weights are of a later step.

    Args:
      done: steps of the newest checkpoint; None if there is none.

    Raises:
      ValueError: `config.train.steps` is below `done`; says what to do.
    """
    if done is not None and done > config.train.steps:
        raise ValueError(
            f"config.train.steps is {config.train.steps}, but {workdir} has done {done} steps, and "
            f"its weights are those of step {done}. To go on, give config.train.steps={done} or "
            "more; for the policy of an earlier step, python -m speciarl_jax.evaluate --step=N "
            "takes its checkpoint, if that is kept; to train fewer steps, give another --workdir"
        )
