"""The programs of a training step, compiled from shapes: no weight and no image is read."""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize

from speciarl_jax.data import prompt_builder
from speciarl_jax.experiment import validate_config
from speciarl_jax.experiment.make_verifier import verifier_options
from speciarl_jax.experiment.run import Run
from speciarl_jax.models import family, load_policy
from speciarl_jax.models.checkpoints import hf_checkpoint
from speciarl_jax.models.policy_config import PolicyConfig
from speciarl_jax.models.prompt_batch import PromptBatch
from speciarl_jax.rl import optimizer
from speciarl_jax.rollout.types import Groups
from speciarl_jax.runtime import sharding
from speciarl_jax.tools.plan import abstract_run
from speciarl_jax.training import state as state_lib
from speciarl_jax.training import steps
from speciarl_jax.training.state import TrainState

# Programs of a step that is not fused.
STAGES = {"rollout", "verify", "update"}
# Tokens of Qwen's chat template around one image and one text.
_TEMPLATE_TOKENS = 16
# Of a text, where there is no tokenizer to count them.
_BYTES_A_TOKEN = 4
# The published limit of an image's pixels.
_MOST_PIXELS = 12_845_056


@dataclasses.dataclass(frozen=True)
class Sizes:
    """Of the largest row of a batch."""

    height: int  # of the image as the vision encoder sees it, in patches
    width: int  # likewise
    slots: int  # of the vision encoder's sequence
    image_tokens: int  # M
    prompt_tokens: int  # P, those of the image included


@dataclasses.dataclass(frozen=True)
class Abstract:
    """Holds a run whose arrays are shapes with their shardings."""

    run: Run  # as training has it; no tokenizer, no images
    optimizer: Any
    state: TrainState  # of shapes
    state_sharding: TrainState
    sizes: Sizes
    notes: tuple[str, ...]  # what was assumed

    @property
    def sampled(self) -> int:
        """Images that a call of the rollout gets."""
        config, on_host = self.run.config, self.run.verifier is None
        chunks = config.verifier.num_chunks if on_host else 1
        return validate_config.sampled_images(config) // chunks


@dataclasses.dataclass(frozen=True)
class Program:
    """Holds a program to compile."""

    name: str  # as in `steps.programs`, or "evaluate"
    function: Any  # jitted, not compiled
    arguments: Any  # shapes and shardings of its arguments
    resident: Any  # shapes and shardings of what lies in memory beside its arguments while it runs

    def lower(self) -> jax.stages.Lowered:
        """Traces the program for its devices, to be compiled."""
        return self.function.lower(*self.arguments)


def model_config(name: str, path: str | None) -> PolicyConfig:
    """Returns the dimensions of a published size (`family.preset`), or of `config.model.path`.

    Raises:
      ValueError: there is neither.
    """
    if name:
        return family.preset(name)
    if not path:
        raise ValueError(
            "config.model.path is empty; give --model, a published size such as 7b, to plan "
            "without a checkpoint"
        )
    return hf_checkpoint.read_config(load_policy.model_folder(path))


def sizes_of(
    config: ml_collections.ConfigDict, model: PolicyConfig, pixels: tuple[int, int], text: int
) -> Sizes:
    """Sizes of a batch of images of one size, in the buckets that `config.data` asks for.

    Args:
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
    slots, image_tokens = family.of(model).vision_sizes([[grid]], vision, growth)
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
    return Sizes(*grid, slots, image_tokens, length)


def abstract(
    config: ml_collections.ConfigDict, model: PolicyConfig, sizes: Sizes, devices: Any
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
    return of_run(run, sizes)


def of_run(run: Run, sizes: Sizes) -> Abstract:
    """Adds optimizer and state to a run of shapes (`abstract_run.make_run`)."""
    optimizer_ = optimizer.make(**run.config.optimizer)
    moving = run.algorithm.reference_decay < 1
    state, state_sharding = state_lib.abstract_state(
        run.mesh, run.lora, optimizer_, moving_reference=moving
    )
    return Abstract(run, optimizer_, state, state_sharding, sizes, _notes(run.config))


def _notes(config: ml_collections.ConfigDict) -> tuple[str, ...]:
    name, options = config.verifier.name, verifier_options(config)
    if not abstract_run.is_tree_alone(config):
        return (
            f"verify: {name} is not planned, only the taxonomy is; a judge on the same devices "
            "needs memory and time beyond what stands here",
        )
    if options["path"] or abstract_run.tree_of(config) is None:
        return ("verify: the label tree is the embedded benchmark's",)
    return ()


def programs(plan: Abstract, only: tuple[str, ...] = ()) -> Iterator[Program]:
    """Traces the programs of a training step, one after the other.

    They are those that training runs (`steps.programs`): with `config.train.fused` the whole step
    is one. `only` may name its stages all the same, or "evaluate", greedy answers.

    Args:
      only: names of programs; those of the step when empty.

    Raises:
      ValueError: a name that is no program of this run.
    """
    run = plan.run
    compiled = steps.programs(run, plan.optimizer, plan.state_sharding)
    if STAGES & set(only) and run.config.train.objective == "rl":
        config = run.config.copy_and_resolve_references()
        config.train.fused = False
        run = dataclasses.replace(run, config=config)
        compiled |= steps.programs(run, plan.optimizer, plan.state_sharding)
    names = only or tuple(compiled)
    greedy = run.sampler(1, run.config.rollout.max_tokens)
    compiled["evaluate"] = jax.jit(greedy, out_shardings=sharding.batch_sharding(run.mesh))
    for name in names:
        if name not in compiled:
            raise ValueError(f"--programs: there is no {name!r}; choose among {sorted(compiled)}")
        arguments, resident = _arguments(plan, compiled, name)
        yield Program(name, compiled[name], arguments, resident)


def _arguments(plan: Abstract, compiled: Mapping[str, Any], name: str) -> tuple[Any, Any]:
    """Makes the shapes of a program's arguments, and of what lies beside them in memory."""
    run, state, config = plan.run, plan.state, plan.run.config
    key, scalar = jax.ShapeDtypeStruct((2,), jnp.uint32), jax.ShapeDtypeStruct((), jnp.float32)
    if name == "step":
        supervised = config.train.objective == "sft"
        verifier = () if supervised else run.verifier
        return (state, run.base, verifier, batch_of(plan, plan.sampled, supervised), key), ()
    beside = state.opt_state, getattr(state, "reference", ()), run.verifier
    if name == "evaluate":
        batch = batch_of(plan, config.evaluation.batch_size)
        key = jax.eval_shape(lambda: jax.random.key(0))
        return (run.lora, run.base, batch, key, scalar, scalar), beside
    rows = sharding.batch_sharding(run.mesh)
    learned = config.train.batch_size
    batch = batch_of(plan, learned if name == "update" else plan.sampled)
    sampling = run.lora, run.base, batch, key
    if name == "rollout":
        return sampling, beside
    features_BMD, rollout = sharding.placed(jax.eval_shape(compiled["rollout"], *sampling), rows)
    if name == "verify":
        return (run.verifier, batch, rollout), (state, run.base, batch.patches_BSC, features_BMD)
    shape = (learned, config.rollout.num_rollouts)
    kinds = [jnp.int32, bool] + [jnp.float32] * bool(config.reward.information.strength)
    verdicts = tuple(jax.ShapeDtypeStruct(shape, kind) for kind in kinds)
    if config.train.dynamic_sampling.max_rounds:
        batch = batch.without_images()
    groups = Groups(batch, features_BMD, rollout, *sharding.placed(verdicts, rows))
    return (state, run.base, groups), run.verifier


def batch_of(plan: Abstract, images: int, target: bool = False) -> PromptBatch:
    """Makes a batch of shapes; with `target`, one given completion about each image."""
    sizes, run = plan.sizes, plan.run
    batch = abstract_run.make_batch(
        run,
        images,
        (sizes.height, sizes.width),
        sizes.prompt_tokens,
        padded=(sizes.slots, sizes.image_tokens),
    )
    if not target:
        return batch
    return batch.replace(target=abstract_run.given_completions(run, batch))
