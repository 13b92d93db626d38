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
from speciarl_jax.evaluation import metrics, predictions, provenance, report, results
from speciarl_jax.evaluation.evaluator import Evaluator, answer_part
from speciarl_jax.evaluation.metrics import Score
from speciarl_jax.experiment import host_verification
from speciarl_jax.experiment.run import Run, facts_of, prepare
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
from speciarl_jax.runtime.workdir import open_workdir
from speciarl_jax.training import build_update, sample_logger, steps, train_data
from speciarl_jax.training.state import TrainState
from speciarl_jax.training.train_logger import TrainLogger

SUMMARY = "summary.json"


def train(
    run: Run,
    workdir: epath.PathLike,
    after_first_step: Callable[[], None],
    *,
    clock: RunClock | None = None,
    allow_change: bool = False,
) -> tuple[nnx.State, float]:
    """The loop over steps; resumes where an earlier run in `workdir` stopped.

    Args:
      run: policy, verifier, data.
      workdir: receives checkpoints and metrics.
      after_first_step: called when the first step of this process has finished.
      clock: counts the seconds of this process; from here on when None.
      allow_change: go on from a checkpoint of another configuration.

    Returns:
      The trained adapters, and the seconds that earlier processes of this run took.

    Raises:
      ValueError: the checkpoint belongs to another configuration.
      FloatingPointError: the gradient was not finite too often in a row.
      host_verification.JudgeUnavailable: too many answers of a step have no verdict; a
        checkpoint of the step before was saved.
      exit_codes.Preempted: the machine is about to be taken away; a checkpoint was saved.
      exit_codes.StorageError: a checkpoint cannot be written.
    """
    config, workdir, clock = run.config, epath.Path(workdir), clock or RunClock()
    optimizer, state, where = build_update.start_state(run)
    gallery = sample_logger.Gallery(config.train)
    stream = train_data.training_stream(run, gallery.watch)
    with contextlib.ExitStack() as stack:
        checkpoints = stack.enter_context(Checkpoints(workdir / "checkpoints", **config.checkpoint))
        facts = facts_of(run)
        done, state, window = go_on(checkpoints, state, stream, clock, facts, allow_change)
        watch = step_timer.StepTimer()
        stack.callback(watch.close)
        program = steps.build_step(run, optimizer, where, watch.stage_done)

        def first_step_done():
            clock.step_done(done + 1)
            after_first_step()

        journal = TrainLogger(run, workdir, done, first_step_done, watch, window, gallery)
        stack.callback(journal.close)
        profiler = stack.enter_context(Profiler(workdir, config.train.profile_steps))
        notice = stack.enter_context(preemption.Notice())

        def where_it_stands():
            return {
                "stream": stream.get_state(),
                "processes": jax.process_count(),
                "window": journal.window,
                **clock.get_state(),
            }

        def next_batch():
            return run.place(next(stream))

        position = where_it_stands()
        dynamic = config.train.dynamic_sampling.max_rounds > 0
        for number in range(done + 1, config.train.steps + 1):
            profiler.before_step(number)
            batch = next_batch if dynamic else next_batch()
            watch.begin()
            try:
                state, values = program(state, run.base, run.verifier, batch, np.uint32(number))
            except host_verification.JudgeUnavailable:
                # The step before is recorded here, after `position` was taken.
                journal.flush()
                position["window"] = journal.window
                checkpoints.save(number - 1, state, position, facts, force=True)
                raise
            watch.end(values)
            journal.add(number, values | run.place_metrics())
            profiler.after_step(values)
            leaves, last = notice.after_step(), number == config.train.steps
            due = last or checkpoints.due(number)
            metric = None
            if due or leaves:
                # A run that goes on from a checkpoint writes the rows after it, and no earlier.
                journal.flush()
                metric = journal.mean(begin_anew=due)
            position = where_it_stands()
            checkpoints.save(number, state, position, facts, metric=metric, force=last or leaves)
            if leaves and not last:
                checkpoints.wait()
                raise exit_codes.Preempted(
                    f"preempted: step {number} is saved; start again to go on"
                )
    return state.lora, clock.earlier


def go_on(
    checkpoints: Checkpoints,
    state: TrainState,
    stream: Any,
    clock: RunClock,
    facts: Mapping[str, Any],
    allow_change: bool,
) -> tuple[int, TrainState, tuple[float, int]]:
    """Takes up the newest checkpoint, if there is one; sets `stream` and `clock` to where they
    stood.

    Returns:
      The number of finished steps, the state after them, and `window` of the `TrainLogger`.
    """
    found = checkpoints.resume(state, facts, allow_change=allow_change)
    if found is None:
        return 0, state, (0.0, 0)
    done, state, position = found
    # Checkpoints of older versions, and those that `convert` makes, say less.
    was = position.get("processes", jax.process_count())
    stream.set_state(pipeline.state_for(position["stream"], was, jax.process_count()))
    clock.set_state(position)
    logging.info("resumed after step %d", done)
    return done, state, tuple(position.get("window", (0.0, 0)))


def greedy_part(config: ml_collections.ConfigDict, policy: str) -> predictions.Part:
    """What the greedy answers of a policy are called in `predictions.jsonl`."""
    prompt = epath.Path(config.data.prompt).stem
    return predictions.Part(policy, config.data.name, prompt, predictions.GREEDY)


def greedy_score(
    evaluator: Evaluator,
    lora: nnx.State,
    name: str,
    store: predictions.Predictions | None,
) -> Score | None:
    """Score of a policy's greedy answers, which go to `predictions.jsonl` unless they are there.

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
    path: epath.Path, scores: Mapping[str, Score], steps: int, clock: RunClock
) -> None:
    """Scores, and how long the run took (`RunClock.summary`).

    Raises:
      ValueError: a summary that is there already is damaged.
    """
    before = jsonl.read_object(path, "delete it")
    summary = {name: dataclasses.asdict(score) for name, score in scores.items()}
    summary |= clock.summary(steps, before)
    jsonl.replace(path, json.dumps(summary, indent=2) + "\n")


def main(argv: Sequence[str]) -> None:
    given = flags.FLAGS
    if given.print_config and given.config is not None:
        print(given.config.to_json(indent=2))
        return
    if len(argv) > 1 or not given.workdir or given.config is None:
        raise app.UsageError("give --config=FILE and --workdir=FOLDER, and flags only")
    clock = RunClock()
    multihost.start(given)
    quieten_orbax()
    compilation_cache.enable(given.config.compilation_cache)
    config, workdir = given.config, open_workdir(given.workdir)
    # `write_summary` would refuse a damaged one after all the work.
    jsonl.read_object(workdir / SUMMARY, "delete it")
    metrics.check_weights(config.evaluation.weights)
    run = prepare(config)
    with Checkpoints(workdir / "checkpoints", **config.checkpoint) as checkpoints:
        checkpoints.check_fingerprint(facts_of(run), allow_change=given.allow_config_change)
    if jax.process_index() == 0:
        jsonl.replace(workdir / "config.json", config.to_json(indent=2) + "\n")
    store = predictions.Predictions(workdir) if jax.process_index() == 0 else None
    evaluator = Evaluator(run)
    scores = {"base": greedy_score(evaluator, run.lora, "base", store)}
    allow_change = given.allow_config_change
    lora, _ = train(run, workdir, lambda: None, clock=clock, allow_change=allow_change)
    scores["trained"] = greedy_score(evaluator, lora, "trained", store)
    if store is None:
        return
    write_summary(workdir / SUMMARY, scores, config.train.steps, clock)
    weights = dict(config.evaluation.weights)
    results.update(workdir, store, weights, labels={config.data.name: run.labels})
    report.write(workdir)
    print(report.table(scores))
    for what, name in (
        ("summary", "summary.json"),
        ("report", "report.md"),
        ("page", "report.html"),
        ("checkpoints", "checkpoints"),
        ("TensorBoard", "tensorboard"),
    ):
        print(f"{what + ':':13} {workdir / name}")


if __name__ == "__main__":
    config_flags.DEFINE_config_file("config", None, "Configuration.", lock_config=True)
    flags.DEFINE_string("workdir", None, "Folder for checkpoints, logs and the report.")
    flags.DEFINE_bool("print_config", False, "Print the resolved configuration and stop.")
    flags.DEFINE_bool(
        "allow_config_change", False, "Go on from a checkpoint of another configuration."
    )
    multihost.define_flags()
    app.run(exit_codes.guarded(main))
