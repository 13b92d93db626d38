"""Supervised training of a base policy.

    python -m speciarl_jax.sft --config=configs/quickstart_sft.py --workdir=runs/quickstart_sft

The first stage supervises the vision tower with the levels of the label tree and writes
`vision_tower.safetensors`, named as in a Hugging Face checkpoint's own tower.
"""

import pathlib
import time

import grain.python as grain
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
from absl import app, flags, logging
from flax import nnx
from ml_collections import config_flags
from safetensors.flax import save_file
from transformers import Qwen2VLImageProcessorPil

from speciarl_jax.checkpoint import Checkpoints
from speciarl_jax.data import emoji
from speciarl_jax.metric_writer import MetricWriter
from speciarl_jax.models.qwen2_5_vl.config import VisionConfig
from speciarl_jax.models.qwen2_5_vl.layout import vision_layout
from speciarl_jax.models.qwen2_5_vl.vision import VisionTower
from speciarl_jax.pretraining import vision as vision_stage

_CONFIG = config_flags.DEFINE_config_file("config", None, "Configuration.", lock_config=True)
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder for checkpoints, logs and the result.")


def label_levels(concepts: list[emoji.Concept]) -> vision_stage.Levels:
    """Leaf, nearest node above it, and group of each concept."""
    return vision_stage.levels(
        [
            (c.label_id, c.ancestors[0] if c.ancestors else None, f"group {c.generic}")
            for c in concepts
        ]
    )


class Epochs:
    """The pictures again and again, augmented anew each time; item i is the same in every run."""

    def __init__(self, source_of_epoch, epochs: int):
        self._sources = [source_of_epoch(epoch) for epoch in range(epochs)]
        self._length = len(self._sources[0])

    def __len__(self) -> int:
        return self._length * len(self._sources)

    def __getitem__(self, index: int):
        return self._sources[index // self._length][index % self._length]


def cut_patches(rows, processor, label_of):
    """Pictures of one size to normalised patches [B, S, C] and label numbers [B]."""
    pixels = processor(images=[row["image"] for row in rows], return_tensors="np")["pixel_values"]
    labels = np.array([label_of[row["label_id"]] for row in rows], np.int32)
    return pixels.reshape(len(rows), -1, pixels.shape[-1]).astype(np.float32), labels


def train_vision(config: ml_collections.ConfigDict, workdir: pathlib.Path) -> VisionTower:
    """Trains the tower; resumes where an earlier run in `workdir` stopped."""
    stage, size = config.vision_stage, config.data.image_size
    dimensions = VisionConfig(**config.vision)
    side = size // dimensions.patch_size
    processor = Qwen2VLImageProcessorPil(
        patch_size=dimensions.patch_size,
        merge_size=dimensions.spatial_merge_size,
        size={"shortest_edge": size * size, "longest_edge": size * size},
    )

    def source(split, difficulty, seed):
        return emoji.Source(
            split=split,
            difficulty=difficulty,
            image_size=size,
            seed=seed,
            concept_set=config.data.concept_set,
        )

    concepts = source(config.data.split, config.data.difficulty, 0).concepts
    label_of = {c.label_id: i for i, c in enumerate(concepts)}
    levels = label_levels(concepts)
    data = Epochs(
        lambda epoch: source(config.data.split, config.data.difficulty, config.seed + epoch),
        stage.epochs,
    )
    steps = len(data) // stage.batch_size
    batches = (
        grain.MapDataset.source(data)
        .seed(config.seed)
        .shuffle()
        .to_iter_dataset(
            grain.ReadOptions(num_threads=config.data.workers, prefetch_buffer_size=512)
        )
        .batch(stage.batch_size, batch_fn=lambda rows: cut_patches(rows, processor, label_of))
    )

    rngs = nnx.Rngs(config.seed)
    tower = VisionTower(dimensions, dtype=jnp.float32, param_dtype=jnp.float32, rngs=rngs)
    heads = vision_stage.TaxonomyHeads(
        dimensions.out_hidden_size, [len(n) for n in levels.names], rngs=rngs
    )
    graphs, params = zip(nnx.split(tower), nnx.split(heads), strict=True)
    schedule = optax.warmup_cosine_decay_schedule(
        0.0, stage.learning_rate, stage.warmup_steps, steps
    )
    optimizer = optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.adamw(
            schedule,
            b2=0.98,
            weight_decay=stage.weight_decay,
            mask=lambda params: jax.tree.map(lambda p: p.ndim > 1, params),
        ),
    )
    targets = jnp.asarray(levels.target)

    def loss_of(params, patches_BSC, label_B, layout):
        tower, heads = (nnx.merge(g, p) for g, p in zip(graphs, params, strict=True))
        return vision_stage.loss(
            tower,
            heads,
            patches_BSC,
            layout,
            targets[label_B],
            level_weights=stage.level_weights,
            label_smoothing=stage.label_smoothing,
        )

    @jax.jit
    def train_step(state, patches_BSC, label_B, layout):
        params, opt_state = state
        (loss, metrics), grads = jax.value_and_grad(loss_of, has_aux=True)(
            params, patches_BSC, label_B, layout
        )
        updates, opt_state = optimizer.update(grads, opt_state, params)
        return (optax.apply_updates(params, updates), opt_state), {"loss": loss, **metrics}

    evaluate = jax.jit(lambda params, *batch: loss_of(params, *batch)[1]["accuracy"])
    watch = {
        level: cut_patches(list(source(config.data.watch_split, level, 1)), processor, label_of)
        for level in ("clean", "moderate")
    }
    layout = vision_layout([[(side, side)]] * stage.batch_size, dimensions)
    watch_layout = vision_layout([[(side, side)]] * len(watch["clean"][1]), dimensions)

    state = (params, optimizer.init(params))
    checkpoints = Checkpoints(
        workdir / "vision_checkpoints",
        save_every=config.checkpoint.save_every,
        keep=config.checkpoint.keep,
    )
    facts = {"vision": str(config.vision), "stage": str(stage), "data": str(config.data)}
    stream, step = iter(batches), 0
    if checkpoints.latest_step() is not None:
        state, position = checkpoints.restore(state, facts)
        stream.set_state(position)
        step = checkpoints.latest_step()
        logging.info("resumed at step %d of %d", step, steps)
    writer = MetricWriter(workdir, first_step=step)
    begun, first = time.time(), step
    while step < steps:
        patches_BSC, label_B = next(stream)
        state, metrics = train_step(state, patches_BSC, label_B, layout)
        step += 1
        if step % stage.log_every == 0 or step == steps:
            row = {"vision/loss": metrics["loss"]}
            for level, batch in watch.items():
                accuracy = evaluate(state[0], *batch, watch_layout)
                for name, value in zip(("leaf", "node", "group"), accuracy, strict=True):
                    row[f"vision/{config.data.watch_split}_{level}_{name}_accuracy"] = value
            writer.write(step, row)
            left = (time.time() - begun) / (step - first) * (steps - step) / 60
            text = " ".join(f"{name.split('/')[1]} {float(v):.3f}" for name, v in row.items())
            logging.info("step %d/%d, %.0f min left: %s", step, steps, left, text)
        checkpoints.save(step, state, stream.get_state(), facts, force=step == steps)
    checkpoints.close()
    writer.close()
    return nnx.merge(graphs[0], state[0][0])


def main(_):
    config, workdir = _CONFIG.value, pathlib.Path(_WORKDIR.value)
    workdir.mkdir(parents=True, exist_ok=True)
    tower = train_vision(config, workdir)
    flat = {".".join(map(str, path)): p[...] for path, p in nnx.to_flat_state(nnx.state(tower))}
    save_file(flat, workdir / "vision_tower.safetensors")
    logging.info("wrote %s", workdir / "vision_tower.safetensors")


if __name__ == "__main__":
    logging.set_verbosity(logging.INFO)
    flags.mark_flags_as_required(["config", "workdir"])
    app.run(main)
