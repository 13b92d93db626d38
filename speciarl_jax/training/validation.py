"""Validates a run while it trains, keeps its best checkpoint, and says when it should end."""

import dataclasses
import hashlib
import json
import time
from collections.abc import Callable, Mapping
from typing import Any

import ml_collections
import numpy as np
from absl import logging
from flax import nnx

from speciarl_jax.evaluation import constant_answer, metrics
from speciarl_jax.evaluation.evaluator import Evaluator
from speciarl_jax.experiment import host_verification
from speciarl_jax.experiment.make_verifier import verifier_options
from speciarl_jax.experiment.run import (
    Run,
    evaluation_config,
    evaluation_run,
)
from speciarl_jax.runtime import exit_codes, preemption, step_timer
from speciarl_jax.runtime.checkpoint import Checkpoints
from speciarl_jax.training import validation_sets
from speciarl_jax.training.state import TrainState
from speciarl_jax.training.train_logger import VALIDATION, VALIDATION_TIME, TrainLogger

# Numbers of images without a verdict.
UNVERIFIED = "unverified"
# So many validations in a row below `config.train.max_correctness_drop` end the run.
_BELOW = 2


def check(config: ml_collections.ConfigDict) -> None:
    """Refuses what can never be measured, or never have an effect (ValueError)."""
    validation_sets.check(config)
    every, kept, train = config.evaluation.every, config.checkpoint, config.train
    measured = [
        f"{VALIDATION}{name}/{measure}"
        for name in validation_sets.names(config)
        for measure in (*metrics.MEASURES, UNVERIFIED)
    ]
    of_validation = kept.best_metric.startswith(VALIDATION)
    for key, is_on in (
        (f"config.checkpoint.best_metric is {kept.best_metric!r}", of_validation),
        (f"config.train.stop_after is {train.stop_after}", train.stop_after),
        (
            f"config.train.max_correctness_drop is {train.max_correctness_drop}",
            train.max_correctness_drop,
        ),
    ):
        if is_on and not every:
            raise ValueError(
                f"{key}, but config.evaluation.every is 0, so nothing is validated while training; "
                "set it to a number of steps"
            )
    if of_validation and kept.best_metric not in measured:
        raise ValueError(
            f"config.checkpoint.best_metric is {kept.best_metric!r}, which no validation measures; "
            f"choose one of {measured}, or add the set to config.evaluation.validation_sets"
        )
    if of_validation and not kept.keep_best:
        raise ValueError(
            f"config.checkpoint.best_metric is {kept.best_metric!r}, but "
            "config.checkpoint.keep_best is 0, so no best checkpoint is kept; set it to 1 or more"
        )
    if train.stop_after and not of_validation:
        raise ValueError(
            f"config.train.stop_after is {train.stop_after}: so many validations without a better "
            f"config.checkpoint.best_metric, but that is {kept.best_metric!r}; choose one of "
            f"{measured}, and set config.checkpoint.keep_best to 1"
        )


def takes_best(config: ml_collections.ConfigDict) -> bool:
    """Whether the trained policy of a run is its best checkpoint instead of its last."""
    kept, train = config.checkpoint, config.train
    of_validation = kept.keep_best > 0 and kept.best_metric.startswith(VALIDATION)
    return of_validation and bool(train.stop_after or train.max_correctness_drop)


@dataclasses.dataclass
class Progress:
    """What a checkpoint remembers of the validations so far; JSON-able."""

    step: int = -1  # of the last validation; -1 before the first
    asked: str = ""  # digest of `_asked`
    base: dict[str, float] = dataclasses.field(default_factory=dict)  # set -> correctness
    metric: str = ""  # `config.checkpoint.best_metric`, of which `best` is a value
    best: float | None = None
    best_step: int = -1
    since: int = 0  # validations since the best
    drop: float = 0.0  # `config.train.max_correctness_drop`, below which `below` counts
    below: int = 0  # validations in a row that fell too far
    fallen: str = ""  # what the last of them found


def _asked(config: ml_collections.ConfigDict) -> str:
    """Digests what decides, beside the policy, about the scores of a validation."""
    evaluation, judge = config.evaluation, config.evaluation.verifier.name
    values = json.loads(evaluation.to_json())
    known = {key: values[key] for key in ("options", "validation_sets", "images", "seed")}
    known["weights"] = metrics.configured_weights(evaluation.weights)
    if judge:
        options = verifier_options(evaluation_config(config))
        # A judge may have moved to another address.
        kept = {key: value for key, value in options.items() if key not in ("cache", "server")}
        known["verifier"] = [judge, kept]
    text = json.dumps(known, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


class Validation:
    """Validates after the steps that `config.evaluation.every` asks for.

    All processes must call it together; each learns of all verdicts, so that they decide alike.

    Attributes:
      progress: of the run; what checkpoints keep.
      best_step: step of the checkpoint that `best_state` took, or None.
    """

    def __init__(self, run: Run, evaluator: Evaluator | None = None):
        """Opens the validation sets, if there is validation.

        Args:
          run: of the training.
          evaluator: of the evaluation images, whose program is used; a new one when None.

        Raises:
          ValueError: as for `check`, or a set cannot be opened.
        """
        config = run.config
        check(config)
        self._run, self._config, self._weights = run, config, None
        self.progress = self._fresh()
        # The value of `metric_of` at the last validation.
        self._value: float | None = None
        self.best_step: int | None = None
        self._evaluators: dict[str, Evaluator] = {}
        if self.is_on:
            evaluator = evaluator or Evaluator(evaluation_run(run))
            self._weights = metrics.configured_weights(config.evaluation.weights)
            self._evaluators = validation_sets.evaluators(run, evaluator)

    @property
    def is_on(self) -> bool:
        """Whether there is validation while training."""
        return self._config.evaluation.every > 0

    @property
    def validated(self) -> int | None:
        """The last step that was validated, -1 for none; None where there is no validation."""
        return self.progress.step if self.is_on else None

    def is_due(self, step: int) -> bool:
        """Whether there is a validation after this step; 0 stands for the base."""
        steps = self._config.train.steps
        return self.is_on and (step % self._config.evaluation.every == 0 or step == steps)

    def is_done(self, step: int) -> bool:
        """Whether nothing of this step is left to validate."""
        return not self.is_due(step) or self.progress.step == step

    def set_state(self, position: Mapping[str, Any]) -> None:
        """Goes on from the position of a checkpoint; one without validation changes nothing.

        What was found about other images or by another judge does not count any more, nor what was
        counted by another metric or another limit.
        """
        fresh, now = self._fresh(), Progress(**position.get("validation", {}))
        if now.asked != fresh.asked:
            now = dataclasses.replace(fresh, step=now.step)
        if now.metric != fresh.metric:
            now.metric, now.best, now.best_step, now.since = fresh.metric, None, -1, 0
        if now.drop != fresh.drop:
            now.drop, now.below, now.fallen = fresh.drop, 0, ""
        self.progress = now

    def _fresh(self) -> Progress:
        """Returns the progress before the first validation."""
        kept, train = self._config.checkpoint, self._config.train
        return Progress(
            asked=_asked(self._config), metric=kept.best_metric, drop=train.max_correctness_drop
        )

    def get_state(self) -> dict[str, Any]:
        """Returns what the position of a checkpoint keeps; empty before the first validation."""
        known = self.progress.step >= 0
        return {"validation": dataclasses.asdict(self.progress)} if known else {}

    def catch_up(
        self,
        done: int,
        lora: nnx.State,
        checkpoints: Checkpoints,
        logger: TrainLogger,
        timer: step_timer.StepTimer,
        notice: preemption.Notice,
    ) -> None:
        """Validates what must be validated before the next step.

        That is the base before the first step, and the checkpoint that the run goes on from if its
        validation was not finished.

        Args:
          done: steps that are done.
          lora: the adapters after them.

        Raises:
          exit_codes.Preempted, host_verification.JudgeUnavailable: as `after_step` returns them.
        """
        config, known = self._config, self.progress.base.keys() >= self._evaluators.keys()
        unknown = config.train.max_correctness_drop and not known
        if unknown and 0 < done < config.train.steps:
            # A run that was not watched from its beginning.
            scores = self._scores(self._run.lora, "of the base", notice.after_step)
            if scores is None:
                raise notice.error(_saved(done))
            self.progress.base = self._correctness(scores)
        if self.is_done(done):
            return
        adapters = lora if done else self._run.lora
        if (error := self.after_step(done, adapters, logger, timer, notice)) is not None:
            raise error
        if (metric := self.metric_of(done)) is not None:
            checkpoints.add_metric(done, metric)

    def after_step(
        self,
        step: int,
        lora: nnx.State,
        logger: TrainLogger,
        timer: step_timer.StepTimer,
        notice: preemption.Notice,
    ) -> exit_codes.Preempted | exit_codes.RestartNeeded | None:
        """Validates after a step if that is due.

        Args:
          lora: the adapters after the step.
          notice: is asked after each batch whether to save and leave.

        Returns:
          Why the run must save and leave, with this validation still to be done; None if all is
          well.
        """
        if self.is_done(step):
            return None
        logger.flush()
        begun = time.perf_counter()
        try:
            row = self._scores(
                lora, f"after step {step}" if step else "of the base", notice.after_step
            )
        except host_verification.JudgeUnavailable as error:
            return error
        if row is None:
            return notice.error(_saved(step))
        timer.rest()
        logger.add_validation(step, row | {VALIDATION_TIME: time.perf_counter() - begun})
        self._note(step, row)
        return None

    def metric_of(self, step: int) -> float | None:
        """Returns the value of the best metric at a validated step; None if it cannot be the best.

        None as well for the base, for metrics of steps, and below the limit of correctness.
        """
        return self._value if self.progress.step == step > 0 else None

    @property
    def stopped(self) -> str:
        """Why the run ends before its last step; empty if it goes on."""
        now, train = self.progress, self._config.train
        if train.max_correctness_drop and now.below >= _BELOW:
            return (
                f"{now.fallen}, more than config.train.max_correctness_drop "
                f"{train.max_correctness_drop:g}, in {now.below} validations in a row"
            )
        if train.stop_after and now.since >= train.stop_after and now.step < train.steps:
            best = "none" if now.best is None else f"{now.best:.3f} after step {now.best_step}"
            return (
                f"{now.since} validations without a better {now.metric} (best: {best}), and "
                f"config.train.stop_after is {train.stop_after}"
            )
        return ""

    def best_state(self, checkpoints: Checkpoints, state: TrainState) -> TrainState:
        """Returns the state of the best checkpoint where a run ends with it, or else `state`."""
        if self.stopped:
            logging.warning("stopped after step %d: %s", self.progress.step, self.stopped)
        if not takes_best(self._config):
            return state
        checkpoints.wait()
        try:
            self.best_step = checkpoints.best_step()
        except ValueError:
            logging.warning("no validated checkpoint can be the best; the last one is taken")
            return state
        if self.best_step == checkpoints.latest_step():
            return state
        return checkpoints.restore(state, {}, self.best_step)[0]

    def summary(self) -> dict[str, Any]:
        """Returns what `summary.json` says: `stopped`, and `best_step` where that was taken."""
        found = {"stopped": self.stopped} if self.stopped else {}
        return found | ({} if self.best_step is None else {"best_step": self.best_step})

    def _scores(
        self, lora: nnx.State, when: str, leaves: Callable[[], bool]
    ) -> dict[str, float] | None:
        """Returns the metrics of all sets, or None if the run must leave.

        A set without any verdict has no scores, only the number of images without one.

        Raises:
          ValueError: not one image of a set can be read.
          host_verification.JudgeUnavailable: too many answers have no verdict.
        """
        found: dict[str, float] = {}
        for name, evaluator in self._evaluators.items():
            what, parts = f"validation {when}, {name}", []
            for _, part in evaluator.batches(lora, name=what):
                parts.append(part)
                if leaves():
                    return None
            if not any(part.rows for part in parts):
                raise ValueError(f"not one image of the validation set {name!r} can be read")
            category_B = np.concatenate([part.category_BN[:, 0] for part in parts])
            valid_B = np.concatenate([part.valid_BN[:, 0] for part in parts])
            if host_verification.is_host(evaluator.run):
                host_verification.check_verified(evaluator.run, what, valid_B)
            if valid_B.any():
                score = metrics.score(category_B[valid_B], self._weights)
                for measure in metrics.MEASURES:
                    found[f"{VALIDATION}{name}/{measure}"] = getattr(score, measure)
            found[f"{VALIDATION}{name}/{UNVERIFIED}"] = float(np.sum(~valid_B))
            shares = constant_answer.shares(parts)
            found |= {f"{VALIDATION}{name}/{share}": value for share, value in shares.items()}
        self._run.place_metrics()  # of the cache of features; they are no step's
        return found

    def _correctness(self, row: Mapping[str, float]) -> dict[str, float]:
        keys = {name: f"{VALIDATION}{name}/correctness" for name in self._evaluators}
        return {name: row[key] for name, key in keys.items() if key in row}

    def _note(self, step: int, row: Mapping[str, float]) -> None:
        """Counts what a validation found, and warns where correctness fell."""
        now, kept = self.progress, self._config.checkpoint
        now.step, self._value = step, None
        if not step:
            now.base = self._correctness(row)
            return
        self._watch(step, row)
        if not kept.best_metric.startswith(VALIDATION):
            return
        value = None if now.below else row.get(kept.best_metric)
        sign = 1 if kept.best_mode == "max" else -1
        if value is not None and (now.best is None or sign * value > sign * now.best):
            now.best, now.best_step, now.since = value, step, 0
        else:
            now.since += 1
        self._value = value

    def _watch(self, step: int, row: Mapping[str, float]) -> None:
        """Compares the correctness of each set with that of the base."""
        now, limit = self.progress, self._config.train.max_correctness_drop
        fallen = [
            f"{name} {found:.3f} (base {now.base[name]:.3f})"
            for name, found in self._correctness(row).items()
            if limit and name in now.base and now.base[name] - found > limit + 1e-9
        ]
        if not fallen:
            now.below, now.fallen = 0, ""
            return
        now.below += 1
        now.fallen = f"correctness after step {step} fell to {', '.join(fallen)}"
        if now.below < _BELOW:
            logging.warning(
                "%s, more than config.train.max_correctness_drop %g; the run ends if the next "
                "validation finds that, too. Lower config.optimizer.learning_rate, raise "
                "config.loss.kl_coefficient, or train on more kinds of images (config.data)",
                now.fallen,
                limit,
            )


def _saved(step: int) -> str:
    return f"step {step} is saved" if step else "no step is done"
