"""Supervised training of a base policy.

    python -m speciarl_jax.sft --config=configs/quickstart_sft.py --workdir=runs/quickstart_sft

The first stage supervises the vision tower with the levels of the label tree; with
`--config.vision_stage.policy=emoji_tiny` the tower of that policy is taken instead. The second
trains a tokenizer and a decoder that answers in words, on the frozen tower, and writes a checkpoint
folder in the Hugging Face layout: `policy/` in the workdir.
"""

import hashlib
import json
import pathlib
import time
from collections.abc import Sequence

import grain.python as grain
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
import optax.contrib
from absl import app, flags, logging
from flax import nnx
from ml_collections import config_flags
from transformers import Qwen2VLImageProcessorPil

from speciarl_jax import exits, preemption
from speciarl_jax.checkpoint import Checkpoints, quieten_orbax
from speciarl_jax.data import emoji, prompts
from speciarl_jax.data import tokenizer as tokenizer_lib
from speciarl_jax.metric_writer import MetricWriter
from speciarl_jax.models.qwen2_5_vl import hf
from speciarl_jax.models.qwen2_5_vl.config import ModelConfig, TextConfig, VisionConfig
from speciarl_jax.models.qwen2_5_vl.layout import vision_layout
from speciarl_jax.models.qwen2_5_vl.model import Qwen25VL
from speciarl_jax.models.qwen2_5_vl.vision import VisionTower
from speciarl_jax.policy_loading import model_folder
from speciarl_jax.pretraining import answers
from speciarl_jax.pretraining import vision as vision_stage
from speciarl_jax.rollout.logprobs import answer_logprobs

# Where matrices map hidden states to hidden states; embeddings and heads are AdamW's.
_STACKED = {"blocks", "layers"}
_HIDDEN = _STACKED | {"merger_in", "merger_out"}


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
        row = self._sources[index // self._length][index % self._length]
        return {**row, "index": index}


def pictures_of(config: ml_collections.ConfigDict):
    """(split, difficulty, seed) -> the embedded benchmark's pictures of it."""
    return lambda split, difficulty, seed: emoji.Source(
        split=split,
        difficulty=difficulty,
        image_size=config.data.image_size,
        seed=seed,
        concept_set=config.data.concept_set,
    )


def image_processor(dimensions: VisionConfig, image_size: int) -> Qwen2VLImageProcessorPil:
    """Qwen2-VL's image processor for square pictures of `image_size` pixels."""
    return Qwen2VLImageProcessorPil(
        patch_size=dimensions.patch_size,
        merge_size=dimensions.spatial_merge_size,
        size={"shortest_edge": image_size**2, "longest_edge": image_size**2},
    )


def cut_patches(rows, processor, label_of):
    """Pictures of one size to normalised patches [B, S, C] and label numbers [B]."""
    pixels = processor(images=[row["image"] for row in rows], return_tensors="np")["pixel_values"]
    labels = np.array([label_of[row["label_id"]] for row in rows], np.int32)
    return pixels.reshape(len(rows), -1, pixels.shape[-1]).astype(np.float32), labels


def train_vision(config: ml_collections.ConfigDict, workdir: pathlib.Path) -> VisionTower:
    """Trains the tower, cycle after cycle; resumes where an earlier run in `workdir` stopped."""
    stage = config.vision_stage
    dimensions = VisionConfig(**config.vision)
    processor = image_processor(dimensions, config.data.image_size)
    pictures = pictures_of(config)
    concepts = pictures(config.data.split, config.data.difficulty, 0).concepts
    label_of = {c.label_id: i for i, c in enumerate(concepts)}
    levels = label_levels(concepts)
    rngs = nnx.Rngs(config.seed)
    tower = VisionTower(dimensions, dtype=jnp.float32, param_dtype=jnp.float32, rngs=rngs)
    heads = vision_stage.TaxonomyHeads(
        dimensions.out_hidden_size, [len(n) for n in levels.names], rngs=rngs
    )
    graphs, params = zip(nnx.split(tower), nnx.split(heads), strict=True)
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

    def cut(rows):
        return cut_patches(rows, processor, label_of)

    def layout_of(count):
        side = config.data.image_size // dimensions.patch_size
        return vision_layout([[(side, side)]] * count, dimensions)

    watch = {
        level: cut(list(pictures(config.data.watch_split, level, 1)))
        for level in ("clean", "moderate")
    }
    evaluate = jax.jit(lambda params, *batch: loss_of(params, *batch)[1]["accuracy"])

    def watched(params):
        row = {}
        for level, batch in watch.items():
            accuracy = evaluate(params, *batch, layout_of(len(batch[1])))
            for name, value in zip(("leaf", "node", "group"), accuracy, strict=True):
                row[f"vision/{config.data.watch_split}_{level}_{name}_accuracy"] = value
        return row

    # The learning rate rises and falls once a cycle; a later cycle starts from the one before.
    first_epoch = 0
    for cycle, epochs in enumerate(stage.cycles):
        data = Epochs(
            lambda epoch, first=first_epoch: pictures(
                config.data.split, config.data.difficulty, config.seed + first + epoch
            ),
            epochs,
        )
        folder = workdir / f"vision_cycle_{cycle}"
        layout = layout_of(stage.batch_size)
        params = fit(config, stage, folder, data, cut, params, loss_of, layout, watched, ())
        first_epoch += epochs
    return nnx.merge(graphs[0], params[0])


def read_tower(config: ml_collections.ConfigDict) -> VisionTower:
    """The tower of the policy that `config.vision_stage.policy` names, in float32.

    Raises:
      ValueError: there is no such policy, or its tower has other dimensions than `config.vision`.
    """
    folder = model_folder(config.vision_stage.policy)
    wanted = VisionConfig(**config.vision)
    if (found := hf.read_config(folder).vision) != wanted:
        raise ValueError(
            f"the tower of config.vision_stage.policy={folder} is {found}, but config.vision says "
            f"{wanted}; set config.vision to the former, or config.vision_stage.policy='' to train "
            "a new tower"
        )
    return hf.load(folder, dtype=jnp.float32, param_dtype=jnp.float32)[1].visual


def make_optimizer(stage, steps: int) -> optax.GradientTransformation:
    """Muon for the matrices, AdamW for the rest; one rise and fall of the learning rate.

    Muon (Jordan et al., 2024; arXiv 2502.16982) taught the small tower in fewer epochs than AdamW.
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


def fit(config, stage, folder, data, cut, params, loss_of, static, watched, depends_on):
    """One rise and fall of the learning rate over `data`; returns the trained parameters.

    Args:
      config: the whole configuration.
      stage: its part for this stage: batch size, learning rate, and so on.
      folder: of the checkpoints and the metrics of this fit.
      data: random access to rows.
      cut: rows of a batch to a tuple of arrays.
      params: pytree of parameters to start from.
      loss_of: (params, *batch, static) -> (loss, metrics).
      static: pytree that every step gets as the last argument.
      watched: params -> row of metrics, called now and then.
      depends_on: parts of the configuration, besides those of every stage, that a resumed run must
        agree with.
    """
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
    label_tree = hashlib.sha256(emoji.TAXONOMY_PATH.read_bytes()).hexdigest()
    facts = {"rows": len(data), "seed": config.seed, "label_tree": label_tree}
    for section in (stage, config.data, config.vision, *depends_on):
        facts |= json.loads(section.to_json())
    for free in ("cycles", "policy", "log_every", "workers", "watch_split"):
        facts.pop(free, None)
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
                raise exits.Preempted(f"preempted: step {step} is saved; start again to go on")
    checkpoints.close()
    writer.close()
    return state[0]


def new_policy(
    config: ml_collections.ConfigDict, concepts: Sequence[emoji.Concept], folder: pathlib.Path
) -> tuple[prompts.PromptBuilder, Qwen25VL]:
    """Trains a tokenizer on what the policy will read and say, and makes a policy around it.

    Args:
      config: `text`, `vision`, `data.image_size`, `answer_stage.prompt` and `seed` are read.
      concepts: what answers name.
      folder: receives tokenizer and image processor.

    Returns:
      What makes its batches, and a policy with random weights.
    """
    instruction = prompts.read_prompt(config.answer_stage.prompt)
    corpus = [*answers.texts(concepts), *[instruction] * 50]
    tokenizer_lib.train(corpus, config.text.vocab_size, folder)
    vision = VisionConfig(**config.vision)
    image_processor(vision, config.data.image_size).save_pretrained(folder)
    tokenizer = tokenizer_lib.load(folder)
    ids = {name: tokenizer_lib.token_id(tokenizer, token) for name, token in _MODEL_TOKENS.items()}
    model_config = ModelConfig(text=TextConfig(**config.text), vision=vision, **ids)
    processor = prompts.load_image_processor(folder)
    builder = prompts.PromptBuilder(model_config, tokenizer, processor, instruction)
    rngs = nnx.Rngs(config.seed)
    return builder, Qwen25VL(
        model_config, dtype=jnp.float32, param_dtype=jnp.float32, scan_unroll=4, rngs=rngs
    )


def answer_cutter(config: ml_collections.ConfigDict, builder, concepts):
    """rows -> (batch, tokens_BNT, mask_BNT): pictures with N answers to imitate about each."""
    stage, habits = config.answer_stage, answers.Habits(**config.habits)
    concept_of = {c.label_id: c for c in concepts}

    def cut(rows):
        batch = builder([{**row, "label_index": 0} for row in rows], len(rows))
        shape = (len(rows), stage.answers, stage.max_tokens)
        tokens_BNT = np.full(shape, builder.config.eos_token_id, np.int32)
        mask_BNT = np.zeros(shape, bool)
        for b, row in enumerate(rows):
            rng = np.random.default_rng([config.seed, row["index"]])
            for n in range(stage.answers):
                concept = concept_of[row["label_id"]]
                text = answers.response(concept, row["difficulty"], habits, rng)
                token_ids = builder.tokenizer(text, add_special_tokens=False)["input_ids"]
                if len(token_ids) >= stage.max_tokens:
                    raise ValueError(
                        f"the response {text!r} has {len(token_ids)} tokens; raise "
                        f"config.answer_stage.max_tokens ({stage.max_tokens})"
                    )
                tokens_BNT[b, n, : len(token_ids)] = token_ids
                mask_BNT[b, n, : len(token_ids) + 1] = True
        return batch, tokens_BNT, mask_BNT

    return cut


def train_answers(
    config: ml_collections.ConfigDict, tower: VisionTower, workdir: pathlib.Path
) -> pathlib.Path:
    """Trains tokenizer and decoder on the frozen tower; returns the checkpoint folder."""
    stage, folder = config.answer_stage, workdir / "policy"
    pictures = pictures_of(config)
    concepts = pictures(config.data.split, "clean", 0).concepts
    builder, model = new_policy(config, concepts, folder)
    nnx.update(model.visual, nnx.state(tower))
    graph, frozen, decoder = nnx.split(model, nnx.PathContains("visual"), ...)
    nothing_banned = jnp.zeros(config.text.vocab_size, bool)
    cut = answer_cutter(config, builder, concepts)

    def loss_of(decoder, batch, tokens_BNT, mask_BNT, frozen):
        policy = nnx.merge(graph, frozen, decoder)
        features_BMD = policy.encode_images(batch.patches_BSC, batch.layout)
        features_BMD = jax.lax.stop_gradient(features_BMD)
        scores = answer_logprobs(
            policy,
            batch,
            features_BMD,
            tokens_BNT,
            banned_V=nothing_banned,
            chunk_size=stage.max_tokens,
        )
        return -jnp.sum(jnp.where(mask_BNT, scores.logp_BNT, 0)) / jnp.sum(mask_BNT), {}

    data = Epochs(
        lambda epoch: pictures(config.data.split, stage.difficulty, config.seed + 10_000 + epoch),
        stage.epochs,
    )
    watched_rows = enumerate(pictures(config.data.watch_split, "mixed", 1))
    watch = cut([{**row, "index": i} for i, row in watched_rows])
    evaluate = jax.jit(lambda decoder: loss_of(decoder, *watch, frozen)[0])
    name = f"sft/{config.data.watch_split}_loss"
    tower_of = ml_collections.ConfigDict({"tower_of": config.vision_stage.policy})
    decoder = fit(
        config,
        stage,
        workdir / "answers",
        data,
        cut,
        decoder,
        loss_of,
        frozen,
        lambda decoder: {name: evaluate(decoder)},
        (config.text, config.habits, tower_of),
    )
    # bfloat16 as the published checkpoints, and half the size.
    hf.save(folder, builder.config, nnx.merge(graph, frozen, decoder), dtype=jnp.bfloat16)
    return folder


_MODEL_TOKENS = {
    "image_token_id": "<|image_pad|>",
    "video_token_id": "<|video_pad|>",
    "vision_start_token_id": "<|vision_start|>",
    "vision_end_token_id": "<|vision_end|>",
    "eos_token_id": "<|im_end|>",
}


def main(_):
    quieten_orbax()
    config, workdir = flags.FLAGS.config, pathlib.Path(flags.FLAGS.workdir)
    workdir.mkdir(parents=True, exist_ok=True)
    tower = read_tower(config) if config.vision_stage.policy else train_vision(config, workdir)
    folder = train_answers(config, tower, workdir)
    logging.info("wrote %s", folder)


if __name__ == "__main__":
    logging.set_verbosity(logging.INFO)
    config_flags.DEFINE_config_file("config", None, "Configuration.", lock_config=True)
    flags.DEFINE_string("workdir", None, "Folder for checkpoints, logs and the result.")
    flags.mark_flags_as_required(["config", "workdir"])
    app.run(exits.guarded(main))
