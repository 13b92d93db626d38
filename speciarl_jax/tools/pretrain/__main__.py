"""Supervised training of a base policy.

    python -m speciarl_jax.tools.pretrain --config=configs/quickstart_sft.py \\
        --workdir=runs/quickstart_sft

The first stage supervises the vision encoder with the levels of the label tree; with
`--config.vision_stage.policy=emoji_tiny` the encoder of that policy is taken instead. The second
trains a tokenizer and a decoder that answers in words, on the frozen encoder, and writes a
checkpoint folder in the Hugging Face layout: `policy/` in the workdir.
"""

import pathlib
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from absl import app, flags, logging
from flax import nnx
from ml_collections import config_flags
from transformers import Qwen2VLImageProcessorPil

from speciarl_jax.data import emoji, prompt_builder
from speciarl_jax.data import tokenizer as tokenizer_lib
from speciarl_jax.models.load_policy import model_folder
from speciarl_jax.models.qwen2_5_vl import hf_checkpoint
from speciarl_jax.models.qwen2_5_vl.config import ModelConfig, TextConfig, VisionConfig
from speciarl_jax.models.qwen2_5_vl.model import Qwen25VL
from speciarl_jax.models.qwen2_5_vl.vision import VisionEncoder
from speciarl_jax.models.qwen2_5_vl.window_layout import vision_layout
from speciarl_jax.rollout.logprobs import answer_logprobs
from speciarl_jax.runtime import exit_codes
from speciarl_jax.runtime.checkpoint import quieten_orbax
from speciarl_jax.runtime.workdir import open_workdir
from speciarl_jax.tools.pretrain import answers, fit
from speciarl_jax.tools.pretrain import vision as vision_stage

_MODEL_TOKENS = {
    "image_token_id": "<|image_pad|>",
    "video_token_id": "<|video_pad|>",
    "vision_start_token_id": "<|vision_start|>",
    "vision_end_token_id": "<|vision_end|>",
    "eos_token_id": "<|im_end|>",
}


def label_levels(concepts: list[emoji.Concept]) -> vision_stage.Levels:
    """Leaf, nearest node above it, and group of each concept."""
    return vision_stage.levels(
        [
            (c.label_id, c.ancestors[0] if c.ancestors else None, f"group {c.generic}")
            for c in concepts
        ]
    )


def images_of(config: ml_collections.ConfigDict):
    """(split, difficulty, seed) -> the embedded benchmark's images of it."""
    return lambda split, difficulty, seed: emoji.Source(
        split=split,
        difficulty=difficulty,
        image_size=config.data.image_size,
        seed=seed,
        concept_set=config.data.concept_set,
    )


def image_processor(dimensions: VisionConfig, image_size: int) -> Qwen2VLImageProcessorPil:
    """Qwen2-VL's image processor for square images of `image_size` pixels."""
    return Qwen2VLImageProcessorPil(
        patch_size=dimensions.patch_size,
        merge_size=dimensions.spatial_merge_size,
        size={"shortest_edge": image_size**2, "longest_edge": image_size**2},
    )


def cut_patches(rows, processor, label_of):
    """Images of one size to normalised patches [B, S, C] and label numbers [B]."""
    pixels = processor(images=[row["image"] for row in rows], return_tensors="np")["pixel_values"]
    labels = np.array([label_of[row["label_id"]] for row in rows], np.int32)
    return pixels.reshape(len(rows), -1, pixels.shape[-1]).astype(np.float32), labels


def train_vision(config: ml_collections.ConfigDict, workdir: pathlib.Path) -> VisionEncoder:
    """Trains the encoder, cycle after cycle; resumes where an earlier run in `workdir` stopped."""
    stage = config.vision_stage
    dimensions = VisionConfig(**config.vision)
    processor = image_processor(dimensions, config.data.image_size)
    images = images_of(config)
    concepts = images(config.data.split, config.data.difficulty, 0).concepts
    label_of = {c.label_id: i for i, c in enumerate(concepts)}
    levels = label_levels(concepts)
    rngs = nnx.Rngs(config.seed)
    encoder = VisionEncoder(dimensions, dtype=jnp.float32, param_dtype=jnp.float32, rngs=rngs)
    heads = vision_stage.TaxonomyHeads(
        dimensions.out_hidden_size, [len(n) for n in levels.names], rngs=rngs
    )
    graphs, params = zip(nnx.split(encoder), nnx.split(heads), strict=True)
    targets = jnp.asarray(levels.target)

    def loss_of(params, patches_BSC, label_B, layout):
        encoder, heads = (nnx.merge(g, p) for g, p in zip(graphs, params, strict=True))
        return vision_stage.loss(
            encoder,
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
        level: cut(list(images(config.data.watch_split, level, 1)))
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
        data = fit.Epochs(
            lambda epoch, first=first_epoch: images(
                config.data.split, config.data.difficulty, config.seed + first + epoch
            ),
            epochs,
        )
        folder = workdir / f"vision_cycle_{cycle}"
        layout = layout_of(stage.batch_size)
        params = fit.fit(
            config, "vision_stage", folder, data, cut, params, loss_of, layout, watched
        )
        first_epoch += epochs
    return nnx.merge(graphs[0], params[0])


def read_encoder(config: ml_collections.ConfigDict) -> VisionEncoder:
    """The encoder of the policy that `config.vision_stage.policy` names, in float32.

    Raises:
      ValueError: there is no such policy, or its encoder has other dimensions than `config.vision`.
    """
    folder = model_folder(config.vision_stage.policy)
    wanted = VisionConfig(**config.vision)
    if (found := hf_checkpoint.read_config(folder).vision) != wanted:
        raise ValueError(
            f"the encoder of config.vision_stage.policy={folder} is {found}, but config.vision "
            f"says {wanted}; set config.vision to the former, or config.vision_stage.policy='' to "
            "train a new encoder"
        )
    return hf_checkpoint.load(folder, dtype=jnp.float32, param_dtype=jnp.float32)[1].visual


def new_policy(
    config: ml_collections.ConfigDict, concepts: Sequence[emoji.Concept], folder: pathlib.Path
) -> tuple[prompt_builder.PromptBuilder, Qwen25VL]:
    """Trains a tokenizer on what the policy will read and say, and makes a policy around it.

    Args:
      config: `text`, `vision`, `data.image_size`, `answer_stage.prompt` and `seed` are read.
      concepts: what answers name.
      folder: receives tokenizer and image processor.

    Returns:
      What makes its batches, and a policy with random weights.
    """
    instruction = prompt_builder.read_prompt(config.answer_stage.prompt)
    corpus = [*answers.texts(concepts), *[instruction] * 50]
    tokenizer_lib.train(corpus, config.text.vocab_size, folder)
    vision = VisionConfig(**config.vision)
    image_processor(vision, config.data.image_size).save_pretrained(folder)
    tokenizer = tokenizer_lib.load(folder)
    ids = {name: tokenizer_lib.token_id(tokenizer, token) for name, token in _MODEL_TOKENS.items()}
    model_config = ModelConfig(text=TextConfig(**config.text), vision=vision, **ids)
    processor = prompt_builder.load_image_processor(folder)
    builder = prompt_builder.PromptBuilder(model_config, tokenizer, processor, instruction)
    rngs = nnx.Rngs(config.seed)
    return builder, Qwen25VL(
        model_config, dtype=jnp.float32, param_dtype=jnp.float32, scan_unroll=4, rngs=rngs
    )


def answer_cutter(config: ml_collections.ConfigDict, builder, concepts):
    """rows -> (batch, tokens_BNT, mask_BNT): images with N answers to imitate about each."""
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
    config: ml_collections.ConfigDict, encoder: VisionEncoder, workdir: pathlib.Path
) -> pathlib.Path:
    """Trains tokenizer and decoder on the frozen encoder; returns the checkpoint folder."""
    stage, folder = config.answer_stage, workdir / "policy"
    images = images_of(config)
    concepts = images(config.data.split, "clean", 0).concepts
    builder, model = new_policy(config, concepts, folder)
    nnx.update(model.visual, nnx.state(encoder))
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

    data = fit.Epochs(
        lambda epoch: images(config.data.split, stage.difficulty, config.seed + 10_000 + epoch),
        stage.epochs,
    )
    watched_rows = enumerate(images(config.data.watch_split, "mixed", 1))
    watch = cut([{**row, "index": i} for i, row in watched_rows])
    evaluate = jax.jit(lambda decoder: loss_of(decoder, *watch, frozen)[0])
    name = f"sft/{config.data.watch_split}_loss"
    decoder = fit.fit(
        config,
        "answer_stage",
        workdir / "answers",
        data,
        cut,
        decoder,
        loss_of,
        frozen,
        lambda decoder: {name: evaluate(decoder)},
        depends_on=("text", "habits", "vision_stage.policy"),
    )
    # bfloat16 as the published checkpoints, and half the size.
    hf_checkpoint.save(
        folder, builder.config, nnx.merge(graph, frozen, decoder), dtype=jnp.bfloat16
    )
    return folder


def check(config: ml_collections.ConfigDict) -> None:
    """Calls what only the later stages read, before the first one spends an hour.

    Raises:
      ValueError: something does not fit; says what, and how to mend it.
      TypeError: a key that a part does not have.
    """
    prompt_builder.read_prompt(config.answer_stage.prompt)
    answers.Habits(**config.habits)
    TextConfig(**config.text)
    VisionConfig(**config.vision)
    for difficulty in (config.data.difficulty, config.answer_stage.difficulty):
        images_of(config)(config.data.split, difficulty, config.seed)
    images_of(config)(config.data.watch_split, "mixed", config.seed)


def main(_):
    quieten_orbax()
    config = flags.FLAGS.config
    workdir = pathlib.Path(open_workdir(flags.FLAGS.workdir))
    check(config)
    encoder = read_encoder(config) if config.vision_stage.policy else train_vision(config, workdir)
    folder = train_answers(config, encoder, workdir)
    logging.info("wrote %s", folder)


if __name__ == "__main__":
    logging.set_verbosity(logging.INFO)
    config_flags.DEFINE_config_file("config", None, "Configuration.", lock_config=True)
    flags.DEFINE_string("workdir", None, "Folder for checkpoints, logs and the result.")
    flags.mark_flags_as_required(["config", "workdir"])
    app.run(exit_codes.guarded(main))
