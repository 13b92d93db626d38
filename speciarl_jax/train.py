"""Trains a policy with SpeciaRL: evaluate, train, evaluate again.

    python -m speciarl_jax.train --config=configs/quickstart.py --workdir=runs/quickstart
    python -m speciarl_jax.train --config=configs/dapo.py:quickstart --print_config

Started again on the same workdir, it goes on from the last checkpoint to the same result.
"""

import contextlib
import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import ml_collections
from absl import app, flags
from etils import epath
from flax import nnx
from ml_collections import config_flags

from speciarl_jax.evaluation import (
    constant_answer,
    evaluation_sets,
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
from speciarl_jax.experiment.run import fingerprint, prepare
from speciarl_jax.runtime import (
    commands,
    compilation_cache,
    compiler,
    exit_codes,
    jsonl,
    multihost,
)
from speciarl_jax.runtime.checkpoint import Checkpoints, quieten_orbax
from speciarl_jax.runtime.wall_clock import RunClock
from speciarl_jax.runtime.workdir import writing
from speciarl_jax.training import compile_ahead, steps
from speciarl_jax.training import validation as validation_lib
from speciarl_jax.training.loop import refuse_fewer_steps, train
from speciarl_jax.training.validation import Validation
from speciarl_jax.training.writers import target as writers

SUMMARY = "summary.json"


def greedy_part(config: ml_collections.ConfigDict, policy: str, data: str) -> predictions.Part:
    """Names the greedy answers of a policy about a data set in `predictions.jsonl`."""
    prompt = epath.Path(config.data.prompt).stem
    return predictions.Part(policy, data, prompt, predictions.GREEDY)


def greedy_scores(
    asked: Mapping[str, Evaluator],
    lora: nnx.State,
    policy: str,
    store: predictions.Predictions | None,
) -> dict[predictions.Part, metrics.Score]:
    """Scores a policy's greedy answers, which go to `predictions.jsonl` unless they are there.

    Answers of another configuration are replaced: a run that was prolonged has another policy.

    Args:
      asked: of `evaluation_sets.evaluators`.

    Returns:
      Nothing in all processes but the first, which alone has the answers.
    """
    found, weights = {}, None
    for data, evaluator in asked.items():
        run = evaluator.run
        part = greedy_part(run.config, policy, data)
        weights = weights or provenance.of_base(run) | provenance.of_adapters(run, lora)
        known = provenance.of_part(run, evaluator.source, weights)
        answer_part(evaluator, lora, store, part, known, overwrite=True)
        if store is not None:
            judged = predictions.verified(store.lines(part))
            found[part] = evaluator.score(predictions.categories(judged))
    return found


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
    asked: Mapping[str, Evaluator],
    workdir: epath.Path,
    scores: Mapping[predictions.Part, metrics.Score],
    clock: RunClock,
    store: predictions.Predictions,
    validation: Validation,
) -> None:
    """Writes `summary.json`, `metrics.json` and the report, and prints where they are.

    Args:
      asked: of `evaluation_sets.evaluators`.
      scores: of `greedy_scores`. They are called by their policies and, where there are several
        data sets, by these.

    Raises:
      ValueError: a summary that is there already is damaged.
    """
    config, ended = next(iter(asked.values())).run.config, validation.summary()
    steps = validation.progress.step if validation.stopped else config.train.steps
    named = {
        part.policy if len(asked) == 1 else f"{part.policy}/{part.data}": score
        for part, score in scores.items()
    }
    write_summary(workdir / SUMMARY, named, steps, clock, ended)
    commands.note(workdir, "train")
    weights = metrics.configured_weights(config.evaluation.weights)
    labels = {data: evaluator.run.labels for data, evaluator in asked.items()}
    found = results.update(workdir, store, weights, labels=labels)
    if config.evaluation.report:
        report.write(workdir)
    # The folder may also hold evaluations of other data sets and prompts.
    mine = {part[:3] for part in scores}
    runs = [row for row in found["runs"] if run_key(row) in mine]
    tests = [row for row in found["comparisons"] if {run_key(row[side]) for side in "ab"} <= mine]
    print(report.table(named | constant_answer.scores(runs)))
    history = report.read_history(workdir)
    said = [*remarks.compared(tests), *remarks.unknown(runs), *remarks.warned(history)]
    print(f"\n{metrics.describe_weights(weights)}", *said, sep="\n")
    for what, value in ended.items():
        print(f"{what.replace('_', ' ') + ':':13} {value}")
    for what, name in (
        ("summary", SUMMARY),
        *([("report", "report.md"), ("page", "report.html")] if config.evaluation.report else []),
        ("checkpoints", "checkpoints"),
        *([("TensorBoard", "tensorboard")] if "tensorboard" in config.logging.writers else []),
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
    compiler.compile_quickly()
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
    writers.check(config, workdir)
    run = prepare(config)
    with Checkpoints(workdir / "checkpoints", **config.checkpoint) as checkpoints:
        checkpoints.check_fingerprint(fingerprint(run), allow_change=allow_change)
        done = checkpoints.latest_step()
        refuse_fewer_steps(done, config, workdir)
    asked = evaluation_sets.evaluators(run)
    judges = [run, *(evaluator.run for evaluator in asked.values())]
    for one in {id(one.verifier): one for one in judges}.values():
        if host_verification.is_host(one):
            one.verifier.check()
    alone = jax.process_index() == 0
    if alone:
        jsonl.replace(workdir / "config.json", config.to_json(indent=2) + "\n")
    store = predictions.Predictions(workdir) if alone else None
    own = asked[config.data.name] if config.evaluation.in_training == "own" else None
    validation = Validation(run, own)
    scores, started = {}, steps.start(run)
    if config.evaluation.before:
        begins = done is None
        with compile_ahead.first_step(run, started) if begins else contextlib.nullcontext():
            scores |= greedy_scores(asked, run.lora, "base", store)
    lora, _ = train(
        run,
        workdir,
        clock=clock,
        allow_config_change=allow_change,
        validation=validation,
        started=started,
    )
    scores |= greedy_scores(asked, lora, "trained", store)
    if alone:
        write_results(asked, workdir, scores, clock, store, validation)


if __name__ == "__main__":
    config_flags.DEFINE_config_file("config", None, "Configuration.", lock_config=True)
    flags.DEFINE_string("workdir", None, "Folder for checkpoints, logs and the report.")
    flags.DEFINE_bool("print_config", False, "Print the resolved configuration and stop.")
    flags.DEFINE_bool(
        "allow_config_change", False, "Go on from a checkpoint of another configuration."
    )
    multihost.define_flags()
    app.run(exit_codes.guarded(main))
