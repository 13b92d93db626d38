"""Trains a policy with SpeciaRL: evaluate, train, evaluate again.

    python -m speciarl_jax.train --config=configs/quickstart.py --workdir=runs/quickstart
    python -m speciarl_jax.train --config=configs/dapo.py:quickstart --print_config

Started again on the same workdir, it goes on from the last checkpoint to the same result.
"""

import contextlib
import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import ml_collections
import numpy as np
from absl import app, flags, logging
from etils import epath
from flax import nnx
from ml_collections import config_flags

from speciarl_jax.data import pipeline
from speciarl_jax.evaluation import (
    constant_answer,
    metrics,
    predictions,
    provenance,
    remarks,
    report,
    results,
)
from speciarl_jax.evaluation.evaluator import Evaluator, answer_part
from speciarl_jax.evaluation.pairs import run_key
from speciarl_jax.experiment import host_verification
from speciarl_jax.experiment.run import Run, evaluation_run, fingerprint, prepare
from speciarl_jax.runtime import (
    compilation_cache,
    exit_codes,
    jsonl,
    multihost,
    preemption,
    step_timer,
)
from speciarl_jax.runtime.checkpoint import Checkpoints, quieten_orbax
from speciarl_jax.runtime.profiler import Profiler
from speciarl_jax.runtime.wall_clock import RunClock
from speciarl_jax.runtime.workdir import writing
from speciarl_jax.training import dynamic_sampling, steps, train_data
from speciarl_jax.training import state as state_lib
from speciarl_jax.training import validation as validation_lib
from speciarl_jax.training.state import TrainState
from speciarl_jax.training.train_logger import TrainLogger
from speciarl_jax.training.validation import Validation

SUMMARY = "summary.json"


def train(
    run: Run,
    workdir: epath.PathLike,
    *,
    clock: RunClock | None = None,
    allow_config_change: bool = False,
    on_first_step: Callable[[], None] = lambda: None,
    validation: Validation | None = None,
) -> tuple[nnx.State, float]:
    """Runs the loop over steps; resumes where an earlier run in `workdir` stopped.

    Args:
      clock: counts the seconds of this process; from here on when None.
      allow_config_change: go on from a checkpoint of another configuration.
      on_first_step: is called when the first step of this process has finished.
      validation: of this run; made here when None.

    Returns:
      The trained adapters, of the best checkpoint if `validation.takes_best`, and the seconds that
      earlier processes of this run took.

    Raises:
      ValueError: the checkpoint belongs to another configuration, or to a later step than the last.
      FloatingPointError: the gradient was not finite too often in a row.
      host_verification.JudgeUnavailable: too many rollouts of a step, or answers of a validation,
        have no verdict; a checkpoint of the last step before was saved.
      exit_codes.Preempted: the machine is about to be taken away, or a person pressed Ctrl-C
        (`Interrupted`); a checkpoint was saved.
      exit_codes.StorageError: a checkpoint cannot be written.
    """
    config, workdir, clock = run.config, epath.Path(workdir), clock or RunClock()
    validation = validation or Validation(run)
    optimizer, state, state_sharding = state_lib.start(run)
    batches, known = train_data.training_batches(run), fingerprint(run)
    with contextlib.ExitStack() as stack:
        checkpoints = stack.enter_context(Checkpoints(workdir / "checkpoints", **config.checkpoint))
        found = checkpoints.resume(state, known, allow_change=allow_config_change)
        done, state, window = resume(found, state, batches, clock, validation)
        refuse_fewer_steps(done, config, workdir)

        def first_step_done() -> None:
            clock.step_done(done + 1)
            on_first_step()

        timer = step_timer.StepTimer()
        stack.callback(timer.close)
        step = steps.train_step(run, optimizer, state_sharding, timer.stage_done)
        logger = TrainLogger(
            run,
            workdir,
            done=done,
            window=window,
            timer=timer,
            on_first_step=first_step_done,
            validated=validation.validated,
        )
        stack.callback(logger.close)
        profiler = stack.enter_context(Profiler(workdir, config.train.profile_steps))
        notice = stack.enter_context(preemption.Notice())
        telling = (logger, timer, notice)
        validation.catch_up(done, state.lora, checkpoints, *telling)
        saved = position(batches, logger, clock, validation)
        for number in range(done + 1, config.train.steps + 1):
            if validation.stopped:
                break
            profiler.before_step(number)
            rows: list[Mapping[str, Any]] = []
            next_batch = train_data.on_devices(run, batches, rows)
            batch = next_batch if dynamic_sampling.is_on(run) else next_batch()
            timer.begin()
            try:
                state, values = step(state, run.base, run.verifier, batch, np.uint32(number))
            except host_verification.JudgeUnavailable:
                # The metrics of the step before are recorded only now.
                logger.flush()
                saved["window"] = logger.window
                checkpoints.save(number - 1, state, saved, known, force=True)
                raise
            timer.end(values)
            logger.add(number, values | run.place_metrics(), rows)
            profiler.after_step(values)
            last = number == config.train.steps
            error = None
            if notice.after_step():
                error = notice.error(f"step {number} of {config.train.steps} is saved")
            else:
                error = validation.after_step(number, state.lora, *telling)
            due = last or validation.is_due(number) or checkpoints.due(number)
            metric = None
            if due or error:
                # A run that goes on from a checkpoint writes the rows after it, and no earlier.
                logger.flush()
                mean = logger.mean(begin_anew=due)
                metric = validation.metric_of(number) if mean is None else mean
            saved = position(batches, logger, clock, validation)
            force = due or error is not None
            checkpoints.save(number, state, saved, known, metric=metric, force=force)
            if error:
                checkpoints.wait()
                raise error
        checkpoints.wait()  # while `notice` keeps signals from ending the process
        state = validation.best_state(checkpoints, state)
    return state.lora, clock.earlier


def position(
    batches: Any, logger: TrainLogger, clock: RunClock, validation: Validation
) -> dict[str, Any]:
    """Returns what a checkpoint keeps beside the state: place in the data, window, seconds."""
    return {
        "stream": batches.get_state(),
        "processes": jax.process_count(),
        "window": logger.window,
        **clock.get_state(),
        **validation.get_state(),
    }


def resume(
    found: tuple[int, TrainState, Mapping[str, Any]] | None,
    state: TrainState,
    batches: Any,
    clock: RunClock,
    validation: Validation,
) -> tuple[int, TrainState, tuple[float, int]]:
    """Sets batches, clock and validation to the position of a checkpoint, if there is one.

    Args:
      found: steps, state and position of the newest checkpoint, or None.
      state: before the first step.

    Returns:
      The number of finished steps, the state after them, and `window` of the `TrainLogger`.
    """
    if found is None:
        return 0, state, (0.0, 0)
    done, state, position = found
    # Checkpoints of older versions, and those that `convert` makes, say less.
    was = position.get("processes", jax.process_count())
    batches.set_state(pipeline.state_for(position["stream"], was, jax.process_count()))
    clock.set_state(position)
    validation.set_state(position)
    logging.info("resumed after step %d", done)
    return done, state, tuple(position.get("window", (0.0, 0)))


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


def greedy_part(config: ml_collections.ConfigDict, policy: str) -> predictions.Part:
    """Names the greedy answers of a policy in `predictions.jsonl`."""
    prompt = epath.Path(config.data.prompt).stem
    return predictions.Part(policy, config.data.name, prompt, predictions.GREEDY)


def greedy_score(
    evaluator: Evaluator, lora: nnx.State, name: str, store: predictions.Predictions | None
) -> metrics.Score | None:
    """Scores a policy's greedy answers, which go to `predictions.jsonl` unless they are there.

    Answers of another configuration are replaced: a run that was prolonged has another policy.

    Returns:
      None in all processes but the first, which alone has the answers.
    """
    run = evaluator.run
    part = greedy_part(run.config, name)
    policy = provenance.of_base(run) | provenance.of_adapters(run, lora)
    known = provenance.of_part(run, evaluator.source, policy)
    answer_part(evaluator, lora, store, part, known, overwrite=True)
    if store is None:
        return None
    judged = predictions.verified(store.lines(part))
    return evaluator.score(predictions.categories(judged))


def write_summary(
    path: epath.Path,
    scores: Mapping[str, metrics.Score],
    steps: int,
    clock: RunClock,
    ended: Mapping[str, Any] | None = None,
) -> None:
    """Writes scores, how long the run took (`RunClock.summary`), and how it `ended`.

    Raises:
      ValueError: a summary that is there already is damaged.
    """
    before = jsonl.read_object(path, "delete it")
    summary = {name: dataclasses.asdict(score) for name, score in scores.items()}
    summary |= clock.summary(steps, before) | (ended or {})
    jsonl.replace(path, json.dumps(summary, indent=2) + "\n")


def write_results(
    run: Run,
    workdir: epath.Path,
    scores: Mapping[str, metrics.Score],
    clock: RunClock,
    store: predictions.Predictions,
    validation: Validation,
) -> None:
    """Writes `summary.json`, `metrics.json` and the report, and prints where they are.

    Raises:
      ValueError: a summary that is there already is damaged.
    """
    ended = validation.summary()
    steps = validation.progress.step if validation.stopped else run.config.train.steps
    write_summary(workdir / SUMMARY, scores, steps, clock, ended)
    weights = metrics.configured_weights(run.config.evaluation.weights)
    data = run.config.data.name
    found = results.update(workdir, store, weights, labels={data: run.labels})
    report.write(workdir)
    # The folder may also hold evaluations of other data sets and prompts.
    mine = {greedy_part(run.config, name)[:3] for name in scores}
    runs = [row for row in found["runs"] if run_key(row) in mine]
    tests = [row for row in found["comparisons"] if {run_key(row[side]) for side in "ab"} <= mine]
    print(report.table(scores | constant_answer.scores(runs)))
    said = [*remarks.compared(tests), *remarks.unknown(runs)]
    print(f"\n{metrics.describe_weights(weights)}", *said, sep="\n")
    for what, value in ended.items():
        print(f"{what.replace('_', ' ') + ':':13} {value}")
    for what, name in (
        ("summary", SUMMARY),
        ("report", "report.md"),
        ("page", "report.html"),
        ("checkpoints", "checkpoints"),
        ("TensorBoard", "tensorboard"),
    ):
        print(f"{what + ':':13} {workdir / name}")


def main(argv: Sequence[str]) -> None:
    """Evaluates the base policy, trains it, and evaluates it again."""
    given = flags.FLAGS
    if given.print_config and given.config is not None:
        print(given.config.to_json(indent=2))
        return
    if len(argv) > 1 or not given.workdir or given.config is None:
        raise app.UsageError("give --config=FILE and --workdir=FOLDER, and flags only")
    clock, allow_change = RunClock(), given.allow_config_change
    multihost.start(given)
    quieten_orbax()
    compilation_cache.enable(given.config.compilation_cache)
    with writing(given.workdir, "train") as workdir:
        train_between_evaluations(given.config, workdir, clock, allow_change)


def train_between_evaluations(
    config: ml_collections.ConfigDict, workdir: epath.Path, clock: RunClock, allow_change: bool
) -> None:
    """Evaluates the base policy, trains it, evaluates it again, and writes the results.

    Raises:
      ValueError: something does not fit, or the workdir belongs to another run.
    """
    # What would be refused after all the work is refused before it.
    jsonl.read_object(workdir / SUMMARY, "delete it")
    metrics.configured_weights(config.evaluation.weights)
    validation_lib.check(config)
    run = prepare(config)
    with Checkpoints(workdir / "checkpoints", **config.checkpoint) as checkpoints:
        checkpoints.check_fingerprint(fingerprint(run), allow_change=allow_change)
        refuse_fewer_steps(checkpoints.latest_step(), config, workdir)
    evaluator = Evaluator(evaluation_run(run))
    for one in {id(one.verifier): one for one in (run, evaluator.run)}.values():
        if host_verification.is_host(one):
            one.verifier.check()
    alone = jax.process_index() == 0
    if alone:
        jsonl.replace(workdir / "config.json", config.to_json(indent=2) + "\n")
    store = predictions.Predictions(workdir) if alone else None
    validation = Validation(run, evaluator)
    scores = {"base": greedy_score(evaluator, run.lora, "base", store)}
    lora, _ = train(
        run, workdir, clock=clock, allow_config_change=allow_change, validation=validation
    )
    scores["trained"] = greedy_score(evaluator, lora, "trained", store)
    if alone:
        write_results(evaluator.run, workdir, scores, clock, store, validation)


if __name__ == "__main__":
    config_flags.DEFINE_config_file("config", None, "Configuration.", lock_config=True)
    flags.DEFINE_string("workdir", None, "Folder for checkpoints, logs and the report.")
    flags.DEFINE_bool("print_config", False, "Print the resolved configuration and stop.")
    flags.DEFINE_bool(
        "allow_config_change", False, "Go on from a checkpoint of another configuration."
    )
    multihost.define_flags()
    app.run(exit_codes.guarded(main))
