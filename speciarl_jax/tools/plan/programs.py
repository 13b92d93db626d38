"""The programs of a training step, compiled from shapes: no weight and no image is read."""

import dataclasses
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize

from speciarl_jax.data import prompt_builder
from speciarl_jax.experiment import validate_config
from speciarl_jax.experiment.run import Run, verifier_options
from speciarl_jax.models import load_policy
from speciarl_jax.models.prompt_batch import PromptBatch
from speciarl_jax.models.qwen2_5_vl import hf_checkpoint, presets, window_layout
from speciarl_jax.models.qwen2_5_vl.config import ModelConfig
from speciarl_jax.rl.optimizer import make
from speciarl_jax.rollout import sample_and_verify
from speciarl_jax.runtime import sharding
from speciarl_jax.tools.plan import abstract_run
from speciarl_jax.training import build_update, sft_step, steps
from speciarl_jax.training.state import TrainState

# Tokens of Qwen's chat template around one image and one text.
_TEMPLATE_TOKENS = 16
# Of a text, where there is no tokenizer to count them.
_BYTES_A_TOKEN = 4
# The published limit of an image's pixels.
_MOST_PIXELS = 12_845_056


@dataclasses.dataclass(frozen=True)
class Sizes:
    """Of the largest row of a batch.

    Attributes:
      height: of the image as the vision encoder sees it, in patches.
      width: likewise.
      windows: W, slots of attention windows.
      image_tokens: M.
      prompt_tokens: P, those of the image included.
    """

    height: int
    width: int
    windows: int
    image_tokens: int
    prompt_tokens: int


@dataclasses.dataclass(frozen=True)
class Abstract:
    """A run whose arrays are shapes with their places on the mesh.

    Attributes:
      run: as training has it; no tokenizer, no images.
      optimizer: of the adapters.
      state: `TrainState` of shapes.
      where: its shardings.
      sizes: of the batch.
      notes: what was assumed.
    """

    run: Run
    optimizer: Any
    state: TrainState
    where: Any
    sizes: Sizes
    notes: tuple[str, ...]

    @property
    def sampled(self) -> int:
        """Images that a call of the rollout gets."""
        config, host = self.run.config, self.run.verifier is None
        return validate_config.sampled_images(config) // (config.verifier.num_chunks if host else 1)


@dataclasses.dataclass(frozen=True)
class Program:
    """A program to compile.

    Attributes:
      name: "rollout", "verify" or "update".
      lowered: to be compiled.
      arguments: their shapes and places.
      resident: likewise, what lies in memory beside its arguments while it runs.
    """

    name: str
    lowered: jax.stages.Lowered
    arguments: Any
    resident: Any


def model_config(name: str, path: str | None) -> ModelConfig:
    """Dimensions of a published size ("7b"), or of the checkpoint in `config.model.path`.

    Raises:
      ValueError: there is neither.
    """
    if name:
        return presets.config(name.upper())
    if not path:
        raise ValueError(
            f"config.model.path is empty; give --model, one of {presets.SIZES}, to plan without a "
            "checkpoint"
        )
    return hf_checkpoint.read_config(load_policy.model_folder(path))


def sizes_of(
    config: ml_collections.ConfigDict, model: ModelConfig, pixels: tuple[int, int], text: int
) -> Sizes:
    """Sizes of a batch of images of one size, in the buckets that `config.data` asks for.

    Args:
      config: the whole configuration.
      model: dimensions.
      pixels: height and width, before images are resized.
      text: tokens of a prompt without its image; 0 to guess from the instruction's length.

    Raises:
      ValueError: the prompt is longer than the configuration allows.
    """
    vision, growth = model.vision, config.data.bucket_growth
    height, width = smart_resize(
        *pixels,
        factor=vision.patch_size * vision.spatial_merge_size,
        max_pixels=config.data.max_pixels or _MOST_PIXELS,
    )
    grid = (height // vision.patch_size, width // vision.patch_size)
    windows, image_tokens = window_layout.vision_sizes([[grid]], vision, growth)
    if not text:
        words = prompt_builder.read_prompt(config.data.prompt) + config.data.system
        text = _TEMPLATE_TOKENS + len(words.encode()) // _BYTES_A_TOKEN
    length = text + image_tokens
    if growth > 1:
        length = -(-length // prompt_builder.PROMPT_MULTIPLE) * prompt_builder.PROMPT_MULTIPLE
    if length > config.data.max_prompt_tokens:
        raise ValueError(
            f"an image of {width} x {height} px and {text} tokens of text make a prompt of "
            f"{length} tokens, config.data.max_prompt_tokens is {config.data.max_prompt_tokens}; "
            "lower --pixels, --prompt_tokens or config.data.max_pixels"
        )
    return Sizes(*grid, windows, image_tokens, length)


def abstract(
    config: ml_collections.ConfigDict, model: ModelConfig, sizes: Sizes, devices: Any
) -> Abstract:
    """The run of a configuration on devices that need not exist.

    Answers are planned at full length: updates of shorter ones
    (`config.train.num_length_buckets`) are smaller programs.

    Raises:
      ValueError: as `prepare`.
    """
    config = config.copy_and_resolve_references()
    config.train.num_length_buckets = 1
    run = abstract_run.make_run(config, model, sharding.make_mesh(**config.mesh, devices=devices))
    optimizer_ = make(**config.optimizer)
    state, where = build_update.abstract_state(run.mesh, run.lora, optimizer_)
    return Abstract(run, optimizer_, state, where, sizes, _notes(config))


def _notes(config: ml_collections.ConfigDict) -> tuple[str, ...]:
    name, options = config.verifier.name, verifier_options(config)
    if name != "taxonomy":
        return (
            f"verify: {name} is not planned, only the taxonomy is; a judge on the same devices "
            "needs memory and time beyond what stands here",
        )
    # Only the sizes matter, and the embedded tree's are those of any benchmark's.
    return () if options["path"] else ("verify: the label tree is the embedded benchmark's",)


def programs(plan: Abstract, only: tuple[str, ...] = ()) -> Iterator[Program]:
    """Traces the programs of a step, one after the other.

    A step that is one program (`config.train.fused`) runs the same three after each other, and so
    needs about the memory of the largest.

    Args:
      plan: the run.
      only: names of programs; all when empty.
    """
    run, config = plan.run, plan.run.config
    rows, copies = sharding.batch_sharding(run.mesh), sharding.replicated(run.mesh)
    number = jax.ShapeDtypeStruct((), jnp.uint32)

    def wanted(name):
        return not only or name in only

    if config.train.objective == "sft":
        if wanted("update"):
            arguments = (plan.state, run.base, (), batch_of(plan, len_batch(plan), True), number)
            program = sft_step.build_step(run, plan.optimizer, plan.where)
            yield Program("update", program.lower(*arguments), arguments, ())
        return
    rollout_of = steps.rollout_function(run)

    def sampled(batch):
        return sharding.placed(jax.eval_shape(rollout_of, run.lora, run.base, batch, number), rows)

    batch = batch_of(plan, plan.sampled)
    if wanted("rollout"):
        arguments = (run.lora, run.base, batch, number)
        program = jax.jit(rollout_of, out_shardings=rows)
        beside = (plan.state.opt_state, run.verifier)
        yield Program("rollout", program.lower(*arguments), arguments, beside)
    if run.verifier is not None and wanted("verify"):
        features, rollout = sampled(batch)
        arguments = (run.verifier, batch, rollout)
        program = jax.jit(sample_and_verify.verify, out_shardings=rows)
        beside = (plan.state, run.base, batch.patches_BSC, features)
        yield Program("verify", program.lower(*arguments), arguments, beside)
    if wanted("update"):
        batch = batch_of(plan, len_batch(plan))
        shape = (len_batch(plan), config.rollout.num_rollouts)
        verdicts = sharding.placed(
            (jax.ShapeDtypeStruct(shape, jnp.int32), jax.ShapeDtypeStruct(shape, bool)), rows
        )
        arguments = (plan.state, run.base, batch, *sampled(batch), *verdicts)
        learn = build_update.learner(run, plan.optimizer)
        program = jax.jit(learn, donate_argnums=0, out_shardings=(plan.where, copies))
        yield Program("update", program.lower(*arguments), arguments, run.verifier)


def len_batch(plan: Abstract) -> int:
    """Images of a step's updates."""
    return plan.run.config.train.batch_size


def batch_of(plan: Abstract, images: int, target: bool = False) -> PromptBatch:
    """A batch of shapes."""
    sizes, run = plan.sizes, plan.run
    batch = abstract_run.make_batch(
        run,
        images,
        (sizes.height, sizes.width),
        sizes.prompt_tokens,
        padded=(sizes.windows, sizes.image_tokens),
    )
    return batch.replace(target=abstract_run.answers(run, batch, 1)) if target else batch
