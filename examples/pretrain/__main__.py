"""Trains a base policy from scratch by supervision.

    python -m examples.pretrain --config=configs/quickstart_sft.py \\
        --workdir=runs/quickstart_sft

The first stage supervises the vision encoder with the levels of the label tree; with
`--config.vision_stage.policy=emoji_tiny` the encoder of that policy is taken instead. The second
trains a tokenizer, and a decoder on the frozen encoder that answers in words. It writes a Hugging
Face checkpoint folder: `policy/` in the workdir.
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

from examples.pretrain import answers, datasets, fit, train_tokenizer
from examples.pretrain import vision as vision_stage
from speciarl_jax.data import image_processor, prompt_builder
from speciarl_jax.data import tokenizer as tokenizer_lib
from speciarl_jax.models.checkpoints import hf_checkpoint
from speciarl_jax.models.decoder.text_config import TextConfig
from speciarl_jax.models.load_policy import model_folder
from speciarl_jax.models.qwen2_5_vl.config import ModelConfig, VisionConfig
from speciarl_jax.models.qwen2_5_vl.vision import VisionEncoder
from speciarl_jax.models.qwen2_5_vl.window_layout import vision_layout
from speciarl_jax.models.vision_language import VisionLanguageModel
from speciarl_jax.rollout.logprobs import answer_logprobs
from speciarl_jax.runtime import exit_codes
from speciarl_jax.runtime.checkpoint import quieten_orbax
from speciarl_jax.runtime.workdir import writing

_MODEL_TOKENS = {
    "image_token_id": "<|image_pad|>",
    "video_token_id": "<|video_pad|>",
    "vision_start_token_id": "<|vision_start|>",
    "vision_end_token_id": "<|vision_end|>",
}


def make_image_processor(dimensions: VisionConfig, image_size: int) -> Qwen2VLImageProcessorPil:
    """Makes Qwen2-VL's image processor for square images of `image_size` pixels."""
    return Qwen2VLImageProcessorPil(
        patch_size=dimensions.patch_size,
        merge_size=dimensions.spatial_merge_size,
        size={"shortest_edge": image_size**2, "longest_edge": image_size**2},
    )


def train_vision(config: ml_collections.ConfigDict, workdir: pathlib.Path) -> VisionEncoder:
    """Trains the encoder, cycle after cycle; resumes where an earlier run in `workdir` stopped."""
    stage, image_size = config.vision_stage, config.data.image_size
    dataset = datasets.DataSet(config, "vision_stage")
    dimensions = VisionConfig(**config.vision)
    processor, concepts = make_image_processor(dimensions, image_size), dataset.concepts
    label_of = {c.label_id: i for i, c in enumerate(concepts)}
    # Leaf, nearest node above it, and group.
    levels = vision_stage.levels(
        [(c.label_id, next(iter(c.ancestors), None), f"group {c.generic}") for c in concepts]
    )
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

    def collate(rows):
        patches = processor(images=[row["image"] for row in rows], return_tensors="np")
        patches_BSC = patches["pixel_values"].reshape(len(rows), -1, dimensions.patch_dim)
        labels = np.array([label_of[row["label_id"]] for row in rows], np.int32)
        return patches_BSC.astype(np.float32), labels

    def layout_of(count):
        side = image_size // dimensions.patch_size
        return vision_layout([[(side, side)]] * count, dimensions)

    watch = {name: collate(list(dataset.open(options, 1))) for name, options in stage.watch.items()}
    evaluate = jax.jit(lambda params, *batch: loss_of(params, *batch)[1]["accuracy"])

    def watched(params):
        row = {}
        for name, batch in watch.items():
            accuracy = evaluate(params, *batch, layout_of(len(batch[1])))
            for level, value in zip(("leaf", "node", "group"), accuracy, strict=True):
                row[f"vision/{name}_{level}_accuracy"] = value
        return row

    # Each cycle has its own warm-up and decay, and starts from the parameters of the one before.
    for cycle, count in enumerate(stage.cycles):
        first = sum(stage.cycles[:cycle])
        epochs = fit.epochs(lambda epoch, first=first: dataset.epoch(first + epoch), count)
        static = layout_of(stage.batch_size)
        task = fit.Task(epochs, collate, loss_of, static, watched, dataset.label_tree)
        params = fit.fit(config, "vision_stage", workdir / f"vision_cycle_{cycle}", task, params)
    return nnx.merge(graphs[0], params[0])


def read_encoder(config: ml_collections.ConfigDict) -> VisionEncoder:
    """Reads the encoder of the policy that `config.vision_stage.policy` names, in float32.

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
    config: ml_collections.ConfigDict, concepts: Sequence[answers.Concept], folder: pathlib.Path
) -> tuple[dict[str, prompt_builder.PromptBuilder], VisionLanguageModel]:
    """Trains a tokenizer on the prompts and all completions, and makes a policy for it.

    Args:
      config: `text`, `vision`, `data.image_size`, `answer_stage.prompts` and `seed` are read.
      concepts: the things that completions name.
      folder: receives tokenizer and image processor.

    Returns:
      Prompt -> builder of its batches, and a policy with random weights.
    """
    prompts = {name: prompt_builder.read_prompt(name) for name in config.answer_stage.prompts}
    corpus = [*answers.texts(concepts), *[text for text in prompts.values() for _ in range(50)]]
    train_tokenizer.train(corpus, config.text.vocab_size, folder)
    vision = VisionConfig(**config.vision)
    make_image_processor(vision, config.data.image_size).save_pretrained(folder)
    tokenizer = tokenizer_lib.load(folder)
    ids = {name: tokenizer_lib.token_id(tokenizer, token) for name, token in _MODEL_TOKENS.items()}
    ends = (tokenizer_lib.token_id(tokenizer, "<|im_end|>"),)
    text = TextConfig(**config.text)
    model_config = ModelConfig(text=text, vision=vision, eos_token_id=ends, **ids)
    processor = image_processor.load(folder)
    builders = {
        name: prompt_builder.PromptBuilder(model_config, tokenizer, processor, instruction)
        for name, instruction in prompts.items()
    }
    rngs = nnx.Rngs(config.seed)
    return builders, VisionLanguageModel(
        model_config, dtype=jnp.float32, param_dtype=jnp.float32, scan_unroll=4, rngs=rngs
    )


def answer_collator(config: ml_collections.ConfigDict, builders, concepts):
    """Makes rows -> (batch, tokens_BNT, mask_BNT): images, each with N completions to imitate.

    All images of a batch have one prompt.
    """
    stage, habits = config.answer_stage, answers.Habits(**config.habits)
    concept_of = {c.label_id: c for c in concepts}
    shares = np.array(list(stage.prompts.values()), float) / sum(stage.prompts.values())

    def collate(rows):
        chosen = np.random.default_rng([config.seed, rows[0]["index"], 1]).random()
        prompt = list(builders)[int(np.searchsorted(np.cumsum(shares)[:-1], chosen, "right"))]
        builder, texts = builders[prompt], []
        for row in rows:
            rng = np.random.default_rng([config.seed, row["index"]])
            about = concept_of[row["label_id"]], row.get("difficulty", ""), habits, rng, prompt
            texts += [answers.response(*about) for _ in range(stage.answers)]
        found = builder.tokenizer(texts, add_special_tokens=False)["input_ids"]
        lengths = np.array([len(token_ids) for token_ids in found])
        if max(lengths) >= stage.max_tokens:
            raise ValueError(
                f"the completion {texts[np.argmax(lengths)]!r} has {max(lengths)} tokens; raise "
                f"config.answer_stage.max_tokens ({stage.max_tokens})"
            )
        # The token that ends a completion is imitated too.
        end, positions = builder.config.eos_token_id[0], np.arange(stage.max_tokens)
        tokens = [[*ids, *[end] * (stage.max_tokens - len(ids))] for ids in found]
        shape = (len(rows), stage.answers, stage.max_tokens)
        mask_BNT = (positions <= lengths[:, None]).reshape(shape)
        batch = builder([{**row, "label_index": 0} for row in rows], len(rows))
        return batch, np.array(tokens, np.int32).reshape(shape), mask_BNT

    return collate


def train_answers(
    config: ml_collections.ConfigDict, encoder: VisionEncoder, workdir: pathlib.Path
) -> pathlib.Path:
    """Trains tokenizer and decoder on the frozen encoder; returns the checkpoint folder."""
    stage, folder = config.answer_stage, workdir / "policy"
    dataset = datasets.DataSet(config, "answer_stage")
    builders, model = new_policy(config, dataset.concepts, folder)
    nnx.update(model.visual, nnx.state(encoder))
    graph, frozen, decoder = nnx.split(model, nnx.PathContains("visual"), ...)
    nothing_banned = jnp.zeros(config.text.vocab_size, bool)
    collate = answer_collator(config, builders, dataset.concepts)

    def loss_of(decoder, batch, tokens_BNT, mask_BNT, frozen):
        policy = nnx.merge(graph, frozen, decoder)
        features_BMD = policy.encode_images(batch.patches_BSC, batch.layout)
        scores = answer_logprobs(
            policy,
            batch,
            jax.lax.stop_gradient(features_BMD),
            tokens_BNT,
            banned_V=nothing_banned,
            chunk_size=stage.max_tokens,
        )
        return -jnp.sum(jnp.where(mask_BNT, scores.logp_BNT, 0)) / jnp.sum(mask_BNT), {}

    def rows_of(options):
        return [{**row, "index": i} for i, row in enumerate(dataset.open(options, 1))]

    watch = {name: collate(rows_of(options)) for name, options in stage.watch.items()}
    evaluate = jax.jit(lambda decoder, *batch: loss_of(decoder, *batch, frozen)[0])

    def watched(decoder):
        return {f"sft/{name}_loss": evaluate(decoder, *batch) for name, batch in watch.items()}

    task = fit.Task(
        data=fit.epochs(lambda epoch: dataset.epoch(10_000 + epoch), stage.epochs),
        collate=collate,
        loss_of=loss_of,
        static=frozen,
        watched=watched,
        label_tree=dataset.label_tree,
    )
    depends_on = ("text", "habits", "vision_stage.policy")
    decoder = fit.fit(config, "answer_stage", workdir / "answers", task, decoder, depends_on)
    model = nnx.merge(graph, frozen, decoder)
    model_config = next(iter(builders.values())).config
    # bfloat16 as the published checkpoints, and half the size.
    hf_checkpoint.save(folder, model_config, model, dtype=jnp.bfloat16)
    return folder


def check(config: ml_collections.ConfigDict) -> None:
    """Checks what only the later stages read, before the first one spends an hour.

    Raises:
      ValueError: a value does not fit; says which, and how to mend it.
      TypeError: a section has an unknown key.
    """
    for prompt in (*config.answer_stage.prompts, *config.habits.leanings):
        prompt_builder.read_prompt(prompt)
    answers.Habits(**config.habits)
    TextConfig(**config.text)
    VisionConfig(**config.vision)
    for stage in ("vision_stage", "answer_stage"):
        dataset = datasets.DataSet(config, stage)
        for options in config[stage].watch.values():
            dataset.open(options, 1)


def main(_):
    quieten_orbax()
    config = flags.FLAGS.config
    with writing(flags.FLAGS.workdir, "pretrain") as opened:
        workdir = pathlib.Path(opened)
        check(config)
        known = config.vision_stage.policy
        encoder = read_encoder(config) if known else train_vision(config, workdir)
        folder = train_answers(config, encoder, workdir)
        logging.info("wrote %s", folder)


if __name__ == "__main__":
    logging.set_verbosity(logging.INFO)
    config_flags.DEFINE_config_file("config", None, "Configuration.", lock_config=True)
    flags.DEFINE_string("workdir", None, "Folder for checkpoints, logs and the result.")
    flags.mark_flags_as_required(["config", "workdir"])
    app.run(exit_codes.guarded(main))
