"""Trains a policy with SpeciaRL: evaluate, train, evaluate again.

    python -m speciarl_jax.train --config=configs/quickstart.py --workdir=runs/quickstart
    python -m speciarl_jax.train --config=configs/dapo.py:quickstart --print_config

Started again on the same workdir, it goes on from the last checkpoint to the same result.
"""

import collections
import contextlib
import dataclasses
import json
import pathlib
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import ml_collections
import numpy as np
from absl import app, flags, logging
from flax import nnx
from ml_collections import config_flags
from tqdm import tqdm

from speciarl_jax import (
    assemble,
    dynamic_sampling,
    evaluation,
    judging,
    metrics,
    report,
    rollout_samples,
    sharding,
    step,
    supervised,
)
from speciarl_jax.checkpoint import Checkpoints, quieten_orbax
from speciarl_jax.data import pipeline
from speciarl_jax.metric_writer import MetricWriter
from speciarl_jax.update import TrainState

# What may differ between a checkpoint and the run that goes on from it.
_FREE = (
    *("train.steps", "train.log_every", "checkpoint.", "evaluation.", "data.workers", "mesh."),
    *("verifier.max_unverified", "verifier.http_judge.cache", "verifier.http_judge.server."),
    "train.samples_",
)


def build_step(run: assemble.Run, optimizer: Any, where: TrainState) -> Callable:
    """(state, base, verifier, batch, step) -> (state, metrics): rollout -> verify -> reward ->
    advantage -> update.

    One compiled program with `config.train.fused`, otherwise three. A host verifier sits between
    programs in any case (`judging`). With dynamic sampling it takes a function that gives the next
    batch instead of a batch.
    """
    config = run.config
    if config.train.objective == "labels":
        return supervised.build_step(run, optimizer, where)
    sample = run.sampler(config.rollout.num_rollouts, config.rollout.max_tokens)
    learn = assemble.learner(run, optimizer)
    temperature = np.float32(config.rollout.temperature)
    top_p = np.float32(config.rollout.top_p)
    copies, rows = sharding.replicated(run.mesh), sharding.batch_sharding(run.mesh)

    def rollout_of(lora, base, batch, number):
        key = jax.random.fold_in(jax.random.key(config.seed), number)
        return sample(lora, base, batch, key, temperature, top_p)

    def whole(state, base, verifier, batch, number):
        features_BMD, rollout = rollout_of(state.lora, base, batch, number)
        category_BN, valid_BN = step.verify(verifier, batch, rollout)
        return learn(state, base, batch, features_BMD, rollout, category_BN, valid_BN)

    dynamic = config.train.dynamic_sampling.max_rounds > 0
    if judging.is_host(run):
        if dynamic:
            raise ValueError(
                f"config.verifier.name {config.verifier.name!r} judges on the host, where dynamic "
                "sampling does not work yet; set config.train.dynamic_sampling.max_rounds to 0"
            )
        return judging.build_step(run, rollout_of, learn, where)
    if config.train.fused and not dynamic:
        return jax.jit(whole, donate_argnums=0, out_shardings=(where, copies))
    rollout_program = jax.jit(rollout_of, out_shardings=rows)
    verify_program = jax.jit(step.verify, out_shardings=rows)

    def answer(state, base, verifier, batch, number):
        features_BMD, rollout = rollout_program(state.lora, base, batch, number)
        return features_BMD, rollout, *verify_program(verifier, batch, rollout)

    if dynamic:
        return dynamic_sampling.build_step(run, answer, learn, where)
    learn_program = jax.jit(learn, donate_argnums=0, out_shardings=(where, copies))

    def in_three(state, base, verifier, batch, number):
        return learn_program(state, base, batch, *answer(state, base, verifier, batch, number))

    return in_three


def train(
    run: assemble.Run, workdir: pathlib.Path, after_first_step: Callable[[], None]
) -> tuple[nnx.State, float]:
    """The loop over steps; resumes where an earlier run in `workdir` stopped.

    Args:
      run: policy, verifier, data.
      workdir: receives checkpoints and metrics.
      after_first_step: called when the first step of this process has finished.

    Returns:
      The trained adapters, and the seconds that earlier processes of this run took.

    Raises:
      ValueError: the checkpoint belongs to another configuration.
      FloatingPointError: the gradient was not finite too often in a row.
      judging.JudgeAway: too many answers of a step have no verdict; a checkpoint of the step before
        was saved.
    """
    config, begun = run.config, time.time()
    optimizer, state, where = assemble.init_state(run)
    gallery = rollout_samples.Gallery(config.train)
    stream = training_stream(run, gallery.watch)
    with contextlib.ExitStack() as stack:
        checkpoints = Checkpoints(workdir / "checkpoints", **config.checkpoint)
        stack.callback(checkpoints.close)
        facts, done, earlier = run_facts(run), 0, 0.0
        if checkpoints.latest_step() is not None:
            state, position = checkpoints.restore(state, facts)
            done, earlier = checkpoints.latest_step(), position["seconds"]
            stream.set_state(position["stream"])
            logging.info("resumed after step %d of %d", done, config.train.steps)
        program = build_step(run, optimizer, where)
        journal = Journal(run, workdir, done, after_first_step, gallery)
        stack.callback(journal.close)
        position = {"stream": stream.get_state(), "seconds": earlier}

        def next_batch():
            return sharding.put_batch(run.mesh, run.builder.agree(next(stream)))

        dynamic = config.train.dynamic_sampling.max_rounds > 0
        for number in range(done + 1, config.train.steps + 1):
            batch = next_batch if dynamic else next_batch()
            try:
                state, values = program(state, run.base, run.verifier, batch, np.uint32(number))
            except judging.JudgeAway:
                journal.flush()
                checkpoints.save(number - 1, state, position, facts, force=True)
                raise
            journal.add(number, values)
            last = number == config.train.steps
            if last or checkpoints.due(number):
                # A run that goes on from a checkpoint writes the rows after it, and no earlier.
                journal.flush()
            position = {"stream": stream.get_state(), "seconds": earlier + time.time() - begun}
            checkpoints.save(number, state, position, facts, force=last)
    return state.lora, earlier


def training_stream(run: assemble.Run, watch: Callable[[Sequence], None] = lambda rows: None):
    """This process's share of the batches, epoch after epoch; `watch` sees the rows of each."""
    config, processes = run.config, jax.process_count()
    first, size = run.source(config.seed), assemble.sampled_pictures(config)
    build = supervised.builder(run) if config.train.objective == "labels" else run.build

    def build_batch(rows):
        watch(rows)
        return build(rows, size // processes)

    def source_of_epoch(epoch):
        if hasattr(first, "with_seed"):
            return first.with_seed(config.seed + epoch)
        return run.source(config.seed + epoch)

    return pipeline.training_batches(
        source_of_epoch,
        build_batch,
        batch_size=size,
        seed=config.seed,
        workers=config.data.workers,
        process=jax.process_index(),
        processes=processes,
    )


class Journal:
    """Metric files and progress bar. It reads a step's metrics when the next step has been handed
    to the devices, so that they never wait for the host."""

    def __init__(
        self,
        run: assemble.Run,
        workdir: pathlib.Path,
        done: int,
        after_first_step: Callable[[], None],
        gallery: rollout_samples.Gallery,
    ):
        """Opens the files; only process 0 writes.

        Args:
          run: policy, verifier, data.
          workdir: receives the files.
          done: steps that earlier processes of this run finished.
          after_first_step: called when the first step of this process has finished.
          gallery: the pictures of the samples.
        """
        config = run.config
        self._train, self._first, self._after_first_step = config.train, done + 1, after_first_step
        self._waiting: collections.deque[tuple[int, Mapping[str, Any]]] = collections.deque()
        alone = jax.process_index() == 0
        self._writer = MetricWriter(workdir, first_step=done + 1) if alone else None
        self._samples = None
        if alone:
            path = workdir / rollout_samples.FILE
            board = self._writer.board
            self._samples = rollout_samples.SampleWriter(path, done + 1, run, gallery, board)
        self._bar = tqdm(
            total=config.train.steps,
            initial=done,
            desc="training",
            disable=not alone,
            smoothing=0.05,
            dynamic_ncols=True,
        )

    def add(self, number: int, values: Mapping[str, Any]) -> None:
        """Takes the metrics of step `number` and records those of the step before.

        Raises:
          FloatingPointError: the gradient was not finite too often in a row.
        """
        self._waiting.append((number, values))
        while len(self._waiting) > 1:
            self._record()
        if number == self._first:
            self.flush()
            self._after_first_step()

    def flush(self) -> None:
        """Records all that was taken."""
        while self._waiting:
            self._record()

    def close(self) -> None:
        """Closes bar and files."""
        self._bar.close()
        if self._writer:
            self._samples.close()
            self._writer.close()

    def _record(self):
        number, values = self._waiting.popleft()
        samples = values.get(step.SAMPLES)
        row = {name: float(value) for name, value in values.items() if name != step.SAMPLES}
        due = number % self._train.log_every == 0 or number == self._train.steps
        if self._writer and due:
            self._writer.write(number, row)
        if self._samples and samples is not None:
            self._samples.write(number, samples)
        self._bar.set_postfix_str(progress(row), refresh=False)
        self._bar.update()
        if row["update/skipped_in_a_row"] >= self._train.max_skipped:
            raise FloatingPointError(
                f"step {number}: the gradient was not finite in the last "
                f"{self._train.max_skipped} updates (config.train.max_skipped); lower "
                "config.optimizer.learning_rate, or start from an earlier checkpoint"
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


def facts_of(config: ml_collections.ConfigDict) -> dict[str, Any]:
    """The keys that a resumed run must agree with, `section.key` -> value."""
    flat: dict[str, Any] = {}

    def visit(prefix, value):
        if isinstance(value, Mapping):
            for key, inner in value.items():
                visit(f"{prefix}{key}.", inner)
        elif not prefix.startswith(_FREE):
            flat[prefix.rstrip(".")] = value

    visit("", json.loads(config.to_json()))
    return flat


def run_facts(run: assemble.Run) -> dict[str, Any]:
    """`facts_of` the configuration, and which pictures there are where the source can tell."""
    pictures = run.source(run.config.seed)
    known = {"data.pictures": pictures.fingerprint} if hasattr(pictures, "fingerprint") else {}
    return facts_of(run.config) | known


def open_workdir(path: str) -> pathlib.Path:
    """Makes the folder and proves that it can be written to.

    Raises:
      ValueError: it cannot.
    """
    workdir = pathlib.Path(path)
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        probe = workdir / f".probe_{jax.process_index()}"
        probe.write_text("")
        probe.unlink()
    except OSError as error:
        raise ValueError(
            f"--workdir={path} cannot be written to ({error.strerror}); choose a folder that can"
        ) from None
    return workdir


def greedy_score(
    evaluator: evaluation.Evaluator, lora: nnx.State, name: str, workdir: pathlib.Path
) -> metrics.Score:
    """Score of a policy's greedy answers, which are written to `workdir`."""
    judged = evaluator(lora, name=f"evaluating {name}")
    if jax.process_index() == 0:
        evaluation.write_answers(workdir / f"answers_{name}.jsonl", judged)
    return evaluator.score(judged.verified)


def main(argv: Sequence[str]) -> None:
    given = flags.FLAGS
    if given.print_config and given.config is not None:
        print(given.config.to_json(indent=2))
        return
    if len(argv) > 1 or not given.workdir or given.config is None:
        raise app.UsageError("give --config=FILE and --workdir=FOLDER, and flags only")
    begun = time.time()
    quieten_orbax()
    config, workdir = given.config, open_workdir(given.workdir)
    run = assemble.prepare(config)
    if jax.process_index() == 0:
        (workdir / "config.json").write_text(config.to_json(indent=2) + "\n")
    evaluator = evaluation.Evaluator(run)
    scores = {"base": greedy_score(evaluator, run.lora, "base", workdir)}
    first: list[float] = []
    lora, earlier = train(run, workdir, lambda: first.append(time.time() - begun))
    scores["trained"] = greedy_score(evaluator, lora, "trained", workdir)
    if jax.process_index() > 0:
        return
    summary = {name: dataclasses.asdict(score) for name, score in scores.items()} | {
        "steps": config.train.steps,
        "wall_seconds": round(earlier + time.time() - begun, 1),
        "first_step_seconds": round(first[0], 1) if first else None,
    }
    (workdir / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
    report.write(
        workdir / "report.md",
        summary=summary,
        scores=scores,
        history=report.read_lines(workdir / "metrics.jsonl"),
        before=report.read_lines(workdir / "answers_base.jsonl"),
        after=report.read_lines(workdir / "answers_trained.jsonl"),
    )
    report.write_page(workdir)
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
    app.run(main)
