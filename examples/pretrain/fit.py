"""Trains one supervised stage of `examples.pretrain`; resumes from its checkpoints."""

import dataclasses
import functools
import hashlib
import json
import pathlib
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import grain.python as grain
import jax
import ml_collections
import optax
import optax.contrib
from absl import logging

from speciarl_jax.runtime import preemption
from speciarl_jax.runtime.checkpoint import Checkpoints
from speciarl_jax.runtime.metric_writer import MetricWriter
from speciarl_jax.training.writers.tensorboard import TensorBoard

# What may differ between a checkpoint and the run that continues from it.
_FREE = (
    *("vision_stage.cycles", "vision_stage.log_every", "answer_stage.log_every"),
    *("data.workers", "vision_stage.watch", "answer_stage.watch"),
)
# Where matrices map hidden states to hidden states; embeddings and heads are AdamW's.
_STACKED = {"blocks", "layers"}
_HIDDEN = _STACKED | {"merger_in", "merger_out"}


@dataclasses.dataclass(frozen=True)
class Task:
    """What a stage trains.

    Attributes:
      data: the images of all epochs, one after the other.
      collate: rows of a batch -> tuple of arrays.
      loss_of: (params, *arrays, static) -> (loss, metrics).
      static: pytree that is the same in every step.
      watched: params -> metrics, called every `log_every` steps.
      label_tree: of the data set; a resumed run must have the same.
    """

    data: grain.MapDataset
    collate: Callable[[Sequence[Any]], tuple]
    loss_of: Callable[..., tuple[jax.Array, dict]]
    static: Any
    watched: Callable[[Any], dict[str, Any]]
    label_tree: Mapping[str, Any]


def epochs(source_of: Callable[[int], Sequence[Any]], count: int) -> grain.MapDataset:
    """Joins the images of `count` epochs; `source_of` augments those of an epoch anew.

    Rows get an `index`, which is the same in every run.
    """
    parts = [grain.MapDataset.source(source_of(epoch)) for epoch in range(count)]
    joined = grain.MapDataset.concatenate(parts)
    return joined.map_with_index(lambda index, row: {**row, "index": index})


def make_optimizer(stage, steps: int) -> optax.GradientTransformation:
    """Makes Muon for the matrices and AdamW for the rest, with one warm-up and cosine decay.

    Muon (Jordan et al., 2024; arXiv 2502.16982) trained the small encoder in fewer epochs.
    Matrices of stacked layers [L, in, out] are treated one by one.
    """

    def schedule(peak):
        return optax.warmup_cosine_decay_schedule(0.0, peak, stage.warmup_steps, steps)

    def is_under(path, names):
        return any(getattr(key, "key", None) in names for key in path)

    def is_matrix(path, param):
        # Biases and norms of stacked layers have two axes as well.
        return param.ndim == (3 if is_under(path, _STACKED) else 2)

    def muon_axes(path, param):
        if is_under(path, _HIDDEN) and is_matrix(path, param):
            return optax.contrib.MuonDimensionNumbers(param.ndim - 2, param.ndim - 1)
        return None

    map_tree = jax.tree_util.tree_map_with_path
    return optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.contrib.muon(
            schedule(stage.muon_learning_rate),
            weight_decay=stage.weight_decay,
            weight_decay_mask=functools.partial(map_tree, is_matrix),
            adam_b2=0.98,
            adam_weight_decay=stage.weight_decay,
            adam_learning_rate=schedule(stage.learning_rate),
            muon_weight_dimension_numbers=functools.partial(map_tree, muon_axes),
        ),
    )


def provenance_of(
    config: ml_collections.ConfigDict, parts: Sequence[str], label_tree: Mapping[str, Any]
) -> dict[str, Any]:
    """Lists what a resumed stage must agree with: `section.key` -> value, as JSON has it.

    Args:
      config: the whole configuration.
      parts: sections of it, or single keys (`section.key`).
      label_tree: of the data set.
    """
    values = {
        f"{section}.{key}": value
        for section, inner in json.loads(config.to_json()).items()
        if isinstance(inner, dict)
        for key, value in inner.items()
        if (section in parts or f"{section}.{key}" in parts) and f"{section}.{key}" not in _FREE
    }
    digest = hashlib.sha256(json.dumps(label_tree).encode()).hexdigest()
    return {"seed": config.seed, "label_tree": digest, **values}


def fit(
    config: ml_collections.ConfigDict,
    name: str,
    folder: pathlib.Path,
    task: Task,
    params: Any,
    depends_on: Sequence[str] = (),
) -> Any:
    """Trains a stage once over its data, and returns the trained parameters.

    Args:
      config: the whole configuration.
      name: of the section of this stage: batch size, learning rate, and so on.
      folder: receives checkpoints and metrics.
      task: what is trained.
      params: pytree of parameters to start from.
      depends_on: sections and keys that a resumed run must agree with, besides those of every
        stage.

    Raises:
      exit_codes.Preempted: the machine is about to be taken away; a checkpoint was saved.
    """
    stage = config[name]
    steps = len(task.data) // stage.batch_size
    reading = grain.ReadOptions(num_threads=config.data.workers, prefetch_buffer_size=512)
    rows = task.data.seed(config.seed).shuffle().to_iter_dataset(reading)
    stream = iter(rows.batch(stage.batch_size, batch_fn=task.collate))
    optimizer = make_optimizer(stage, steps)

    @jax.jit
    def train_step(state, batch, static):
        params, opt_state = state
        gradient = jax.value_and_grad(task.loss_of, has_aux=True)
        (loss, _), grads = gradient(params, *batch, static)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        return (optax.apply_updates(params, updates), opt_state), loss

    state, step = (params, optimizer.init(params)), 0
    known = provenance_of(config, (name, "data", "vision", *depends_on), task.label_tree)
    known["rows"] = len(task.data)
    with (
        Checkpoints(folder / "checkpoints", **config.checkpoint) as checkpoints,
        preemption.Notice() as notice,
    ):
        if found := checkpoints.resume(state, known):
            step, state, position = found
            stream.set_state(position)
            logging.info("resumed at step %d of %d", step, steps)
        board = TensorBoard(folder, step + 1)
        writer = MetricWriter(folder, first_step=step + 1, writers=[board])
        begun, first = time.time(), step
        for step in range(first + 1, steps + 1):
            state, loss = train_step(state, next(stream), task.static)
            if step % stage.log_every == 0 or step == steps:
                row = {"sft/loss": loss, **task.watched(state[0])}
                writer.write(step, row)
                left = (time.time() - begun) / (step - first) * (steps - step) / 60
                text = " ".join(f"{name.split('/')[1]} {float(v):.3f}" for name, v in row.items())
                logging.info("step %d/%d, %.0f min left: %s", step, steps, left, text)
            leaves, last = notice.after_step(), step == steps
            checkpoints.save(step, state, stream.get_state(), known, force=last or leaves)
            if leaves and not last:
                checkpoints.wait()
                raise notice.error(f"step {step} of {steps} is saved")
        writer.close()
    return state[0]
