"""One rise and fall of the learning rate over images, resumable: a stage of `sft`."""

import functools
import hashlib
import json
import time
from collections.abc import Sequence
from typing import Any

import grain.python as grain
import jax
import ml_collections
import optax
import optax.contrib
from absl import logging

from speciarl_jax.data import emoji
from speciarl_jax.runtime import exit_codes, preemption
from speciarl_jax.runtime.checkpoint import Checkpoints
from speciarl_jax.runtime.metric_writer import MetricWriter

# What may differ between a checkpoint and the run that goes on from it.
_FREE = (
    *("vision_stage.cycles", "vision_stage.log_every", "answer_stage.log_every"),
    *("data.workers", "data.watch_split"),
)
# Where matrices map hidden states to hidden states; embeddings and heads are AdamW's.
_STACKED = {"blocks", "layers"}
_HIDDEN = _STACKED | {"merger_in", "merger_out"}


class Epochs:
    """The images again and again, augmented anew each time; item i is the same in every run."""

    def __init__(self, source_of_epoch, epochs: int):
        self._sources = [source_of_epoch(epoch) for epoch in range(epochs)]
        self._length = len(self._sources[0])

    def __len__(self) -> int:
        return self._length * len(self._sources)

    def __getitem__(self, index: int):
        row = self._sources[index // self._length][index % self._length]
        return {**row, "index": index}


def make_optimizer(stage, steps: int) -> optax.GradientTransformation:
    """Muon for the matrices, AdamW for the rest; one rise and fall of the learning rate.

    Muon (Jordan et al., 2024; arXiv 2502.16982) taught the small encoder in fewer epochs.
    Matrices of stacked layers [L, in, out] are treated one by one.
    """

    def schedule(peak):
        return optax.warmup_cosine_decay_schedule(0.0, peak, stage.warmup_steps, steps)

    def is_matrix(path, param):
        # Biases and norms of stacked layers have two axes as well.
        names = {getattr(key, "key", None) for key in path}
        return param.ndim == (3 if names & _STACKED else 2)

    def matrices(params):
        def axes(path, param):
            names = {getattr(key, "key", None) for key in path}
            if not names & _HIDDEN or not is_matrix(path, param):
                return None
            return optax.contrib.MuonDimensionNumbers(param.ndim - 2, param.ndim - 1)

        return jax.tree_util.tree_map_with_path(axes, params)

    def decayed(params):
        return jax.tree_util.tree_map_with_path(is_matrix, params)

    return optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.contrib.muon(
            schedule(stage.muon_learning_rate),
            weight_decay=stage.weight_decay,
            weight_decay_mask=decayed,
            adam_b2=0.98,
            adam_weight_decay=stage.weight_decay,
            adam_learning_rate=schedule(stage.learning_rate),
            muon_weight_dimension_numbers=matrices,
        ),
    )


def facts_of(config: ml_collections.ConfigDict, parts: Sequence[str]) -> dict[str, Any]:
    """What a resumed stage must agree with: JSON-able values by their dotted keys.

    Args:
      config: the whole configuration.
      parts: sections of it, or single keys (`section.key`).
    """
    label_tree = hashlib.sha256(emoji.TAXONOMY_PATH.read_bytes()).hexdigest()
    facts = {"seed": config.seed, "label_tree": label_tree}
    for part in parts:
        value = functools.reduce(getattr, part.split("."), config)
        if isinstance(value, ml_collections.ConfigDict):
            inner = json.loads(value.to_json())
            facts |= {f"{part}.{key}": value for key, value in inner.items()}
        else:
            facts[part] = value
    return {key: value for key, value in facts.items() if key not in _FREE}


def fit(config, name, folder, data, cut, params, loss_of, static, watched, depends_on=()):
    """One rise and fall of the learning rate over `data`; returns the trained parameters.

    Args:
      config: the whole configuration.
      name: of its section for this stage: batch size, learning rate, and so on.
      folder: of the checkpoints and the metrics of this fit.
      data: random access to rows.
      cut: rows of a batch to a tuple of arrays.
      params: pytree of parameters to start from.
      loss_of: (params, *batch, static) -> (loss, metrics).
      static: pytree that every step gets as the last argument.
      watched: params -> row of metrics, called now and then.
      depends_on: sections and keys, besides the sections of every stage, that a resumed run must
        agree with.
    """
    stage = config[name]
    steps = len(data) // stage.batch_size
    batches = (
        grain.MapDataset.source(data)
        .seed(config.seed)
        .shuffle()
        .to_iter_dataset(
            grain.ReadOptions(num_threads=config.data.workers, prefetch_buffer_size=512)
        )
        .batch(stage.batch_size, batch_fn=cut)
    )
    optimizer = make_optimizer(stage, steps)

    @jax.jit
    def train_step(state, batch, static):
        params, opt_state = state
        (loss, metrics), grads = jax.value_and_grad(loss_of, has_aux=True)(params, *batch, static)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        return (optax.apply_updates(params, updates), opt_state), {"loss": loss, **metrics}

    state = (params, optimizer.init(params))
    checkpoints = Checkpoints(
        folder / "checkpoints", save_every=config.checkpoint.save_every, keep=config.checkpoint.keep
    )
    facts = {"rows": len(data), **facts_of(config, (name, "data", "vision", *depends_on))}
    stream, step = iter(batches), 0
    if found := checkpoints.resume(state, facts):
        step, state, position = found
        stream.set_state(position)
        logging.info("resumed at step %d of %d", step, steps)
    writer = MetricWriter(folder, first_step=step + 1)
    begun, first = time.time(), step
    with preemption.Notice() as notice:
        while step < steps:
            batch = next(stream)
            state, metrics = train_step(state, batch, static)
            step += 1
            if step % stage.log_every == 0 or step == steps:
                row = {"sft/loss": metrics["loss"], **watched(state[0])}
                writer.write(step, row)
                left = (time.time() - begun) / (step - first) * (steps - step) / 60
                text = " ".join(f"{name.split('/')[1]} {float(v):.3f}" for name, v in row.items())
                logging.info("step %d/%d, %.0f min left: %s", step, steps, left, text)
            leaves = notice.after_step()
            checkpoints.save(step, state, stream.get_state(), facts, force=step == steps or leaves)
            if leaves and step < steps:
                checkpoints.wait()
                raise exit_codes.Preempted(f"preempted: step {step} is saved; start again to go on")
    checkpoints.close()
    writer.close()
    return state[0]
