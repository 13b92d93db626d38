"""The programs of a configuration with the shapes of their arguments, and no weights.

For checks (`jax.eval_shape`) and plans (`Program.function.lower(*Program.arguments).compile()`) of
models that are larger than the machine at hand.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from flax import nnx

from speciarl_jax.data import emoji
from speciarl_jax.experiment import algorithm, validate_config
from speciarl_jax.experiment.run import Run, verifier_options
from speciarl_jax.models import load_policy
from speciarl_jax.models.prompt_batch import PromptBatch
from speciarl_jax.models.qwen2_5_vl import window_layout
from speciarl_jax.models.qwen2_5_vl.config import ModelConfig
from speciarl_jax.models.qwen2_5_vl.model import Qwen25VL
from speciarl_jax.rl import optimizer
from speciarl_jax.rollout import sample_and_verify
from speciarl_jax.rollout.types import Rollout
from speciarl_jax.runtime import sharding
from speciarl_jax.training import build_update, dynamic_sampling, sft_step, steps
from speciarl_jax.verifiers import taxonomy

# Where there is no tokenizer to ask: the longest token of Qwen's has so many bytes.
_LONGEST_TOKEN = 128


class Program(NamedTuple):
    """A compiled part of a run.

    Attributes:
      function: made by `jax.jit` as in the run, with its donations and shardings.
      arguments: `jax.ShapeDtypeStruct` with the shardings that the run's arguments have.
    """

    function: Any
    arguments: tuple[Any, ...]


def make_run(
    config: ml_collections.ConfigDict, model_config: ModelConfig, mesh: jax.sharding.Mesh
) -> Run:
    """`prepare` without checkpoint, tokenizer and images.

    Args:
      config: the whole configuration.
      model_config: of a checkpoint, or of `presets.config`.
      mesh: of any devices, or a `jax.sharding.AbstractMesh`.

    Returns:
      A run that has programs and no data. The taxonomy verifier has the tables of the emoji's label
      tree; of another one, which needs weights or a server, there is none.

    Raises:
      ValueError: numbers that do not fit.
    """
    validate_config.check(config, mesh)
    algorithm.try_parts(config)
    policy = nnx.eval_shape(
        lambda: Qwen25VL(
            model_config,
            **load_policy.dtypes(config),
            lora_rank=config.model.lora_rank,
            lora_alpha=config.model.lora_alpha,
            scan_unroll=config.model.scan_unroll,
            base_weights=config.model.base_weights,
            attention=load_policy.attention_kind(config, mesh),
            rngs=nnx.Rngs(0),
        )
    )
    graphdef, lora, base = nnx.split(policy, nnx.LoRAParam, ...)
    vocabulary = model_config.text.vocab_size
    labels = verifier = None
    if config.verifier.name == "taxonomy":
        labels, verifier = taxonomy.create(
            [b"x" * _LONGEST_TOKEN] * vocabulary,
            emoji.TAXONOMY_PATH,
            **verifier_options(config) | {"path": ""},
        )
        verifier = sharding.placed(verifier, sharding.replicated(mesh))
    return Run(
        config=config,
        mesh=mesh,
        model_config=model_config,
        graphdef=graphdef,
        lora=sharding.placed(lora, sharding.shardings_of(mesh, lora)),
        base=sharding.placed(base, sharding.shardings_of(mesh, base)),
        tokenizer=None,
        builder=None,
        labels=labels,
        verifier=verifier,
        banned_V=np.zeros(vocabulary, bool),
    )


def make_batch(
    run: Run,
    batch_size: int,
    grid: window_layout.Grid,
    prompt_tokens: int,
    padded: tuple[int, int] | None = None,
) -> PromptBatch:
    """The shapes of a batch whose largest image and prompt are these.

    Args:
      run: gives dimensions and mesh.
      batch_size: B.
      grid: (height, width) of an image, in patches.
      prompt_tokens: P, the image's tokens included.
      padded: windows and image tokens that the image is padded to; None for as many as it has.

    Raises:
      ValueError: a grid that does not divide into merged tokens.
    """
    vision = run.model_config.vision
    layout = window_layout.vision_layout([[grid]], vision)
    if padded is not None:
        layout = window_layout.pad_layout(layout, *padded)
    patches = layout.token_index_BM.shape[1] * vision.spatial_merge_size**2
    one = PromptBatch(
        patches_BSC=np.zeros((1, patches, vision.patch_dim), np.float32),
        layout=layout,
        tokens_BP=np.zeros((1, prompt_tokens), np.int32),
        mask_BP=np.zeros((1, prompt_tokens), bool),
        positions_B3P=np.zeros((1, 3, prompt_tokens), np.int32),
        next_position_B=np.zeros(1, np.int32),
        image_id_B=np.zeros(1, np.uint32),
        label_index_B=np.zeros(1, np.int32),
        weight_B=np.zeros(1, np.float32),
    )
    if run.config.data.vision_cache.place != "none":
        # The encoder is a program of its own.
        shape = (1, layout.token_index_BM.shape[1], vision.out_hidden_size)
        features_BMD = np.zeros(shape, load_policy.dtypes(run.config)["dtype"])
        one = one.without_images(features_BMD)
    many = jax.tree.map(lambda x: jax.ShapeDtypeStruct((batch_size, *x.shape[1:]), x.dtype), one)
    return sharding.placed(many, sharding.batch_sharding(run.mesh))


def programs(
    config: ml_collections.ConfigDict,
    model_config: ModelConfig,
    *,
    mesh: jax.sharding.Mesh,
    grid: window_layout.Grid,
    prompt_tokens: int,
) -> dict[str, Program]:
    """What training and evaluation compile.

    Args:
      config: the whole configuration.
      model_config: dimensions of the policy.
      mesh: of any devices.
      grid: (height, width) of the largest image, in patches.
      prompt_tokens: P of the longest prompt, the image's tokens included.

    Returns:
      "evaluate", greedy answers, and either "step" alone (a fused or a supervised step), or
      "rollout", "verify", with dynamic sampling "keep" (the first round), and "learn".

    Raises:
      ValueError: numbers that do not fit, or a verifier other than `taxonomy`.
    """
    run = make_run(config, model_config, mesh)
    if run.verifier is None:
        raise ValueError(
            f"config.verifier.name is {config.verifier.name!r}, which needs weights or a server; "
            "abstract programs have the 'taxonomy'"
        )
    optimizer_ = optimizer.make(**config.optimizer)
    state, where = build_update.abstract_state(mesh, run.lora, optimizer_)
    number = jax.ShapeDtypeStruct((), jnp.uint32)
    batch = make_batch(run, validate_config.sampled_images(config), grid, prompt_tokens)
    watched = make_batch(run, config.evaluation.batch_size, grid, prompt_tokens)
    found = {"evaluate": _sampling(run, watched, num_rollouts=1)}
    if config.train.objective == "sft":
        batch = batch.replace(target=answers(run, batch, 1))
        program = sft_step.build_step(run, optimizer_, where)
        return found | {"step": Program(program, (state, run.base, None, batch, number))}
    dynamic = config.train.dynamic_sampling.max_rounds > 0
    if config.train.fused and not dynamic:
        program = steps.build_step(run, optimizer_, where)
        return found | {"step": Program(program, (state, run.base, run.verifier, batch, number))}
    return found | _in_parts(run, build_update.learner(run, optimizer_), state, where, batch)


def _sampling(run: Run, batch: PromptBatch, num_rollouts: int) -> Program:
    """`run.sampler` on a batch."""
    scalar = jax.ShapeDtypeStruct((), jnp.float32)
    key = jax.eval_shape(lambda: jax.random.key(0))
    sample = run.sampler(num_rollouts, run.config.rollout.max_tokens)
    function = jax.jit(sample, out_shardings=sharding.batch_sharding(run.mesh))
    return Program(function, (run.lora, run.base, batch, key, scalar, scalar))


def _in_parts(run, learn, state, where, batch) -> dict[str, Program]:
    """A step in parts, as `steps.build_step` and `dynamic_sampling.build_step` cut it."""
    rows, copies = sharding.batch_sharding(run.mesh), sharding.replicated(run.mesh)
    found = {"rollout": _sampling(run, batch, run.config.rollout.num_rollouts)}
    features_BMD, rollout = jax.eval_shape(*_call(found["rollout"]))
    features_BMD, rollout = sharding.placed((features_BMD, rollout), rows)
    verify = jax.jit(sample_and_verify.verify, out_shardings=rows)
    found["verify"] = Program(verify, (run.verifier, batch, rollout))
    verdicts = sharding.placed(jax.eval_shape(*_call(found["verify"])), rows)
    learnt = (batch, features_BMD, rollout, *verdicts)
    if run.config.train.dynamic_sampling.max_rounds:
        bare = batch.without_images()
        fresh = dynamic_sampling.Groups(bare, *learnt[1:])
        size = run.config.train.batch_size

        def keep(fresh, signal_B):
            return dynamic_sampling.gather(None, fresh, signal_B, size=size)

        signal_B = jax.ShapeDtypeStruct(batch.weight_B.shape, bool, sharding=rows)
        found["keep"] = Program(jax.jit(keep, out_shardings=rows), (fresh, signal_B))
        pool = sharding.placed(jax.eval_shape(*_call(found["keep"])), rows)
        learnt = (pool.prompt, pool.features_BMD, pool.rollout, pool.category_BN, pool.valid_BN)
    function = jax.jit(learn, donate_argnums=0, out_shardings=(where, copies))
    found["learn"] = Program(function, (state, run.base, *learnt))
    return found


def answers(run: Run, batch: PromptBatch, num_rollouts: int) -> Rollout:
    """The shapes of answers about a batch."""
    shape = (*batch.weight_B.shape, num_rollouts, run.config.rollout.max_tokens)
    dtypes = {"tokens_BNT": jnp.int32, "mask_BNT": bool, "logp_BNT": jnp.float32}
    shapes = Rollout(**{k: jax.ShapeDtypeStruct(shape, dtype) for k, dtype in dtypes.items()})
    return sharding.placed(shapes, sharding.batch_sharding(run.mesh))


def _call(program: Program) -> tuple[Any, ...]:
    return program.function, *program.arguments
