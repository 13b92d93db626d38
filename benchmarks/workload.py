"""Builds the step that is measured: random weights, images and prompts, shared or plain."""

import dataclasses
import json
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from speciarl_jax.experiment.algorithm import Algorithm
from speciarl_jax.models.decoder import attention_kernels
from speciarl_jax.models.decoder.text_config import TextConfig
from speciarl_jax.models.image_tokens import mrope_positions
from speciarl_jax.models.prompt_batch import PromptBatch
from speciarl_jax.models.qwen2_5_vl import presets
from speciarl_jax.models.qwen2_5_vl.config import ModelConfig, VisionConfig
from speciarl_jax.models.qwen2_5_vl.window_layout import vision_layout
from speciarl_jax.models.vision_language import VisionLanguageModel
from speciarl_jax.rl import advantages, optimizer
from speciarl_jax.rl.losses import grpo, kl, token_weights
from speciarl_jax.rl.rewards import best_prediction
from speciarl_jax.rollout import sample_and_verify
from speciarl_jax.rollout.types import UpdateBatch
from speciarl_jax.training import update as update_lib
from speciarl_jax.training.state import TrainState, init_state

SMALL = ModelConfig(
    text=TextConfig(
        vocab_size=4096,
        hidden_size=256,
        intermediate_size=512,
        num_layers=4,
        num_heads=4,
        num_kv_heads=2,
        mrope_section=(8, 12, 12),
    ),
    vision=VisionConfig(
        depth=4,
        hidden_size=128,
        intermediate_size=256,
        num_heads=4,
        out_hidden_size=256,
        full_attention_layers=(1, 3),
    ),
    image_token_id=4090,
    video_token_id=4091,
    vision_start_token_id=4092,
    vision_end_token_id=4093,
    eos_token_id=(4094,),
)


@dataclasses.dataclass(frozen=True)
class Shape:
    """Sizes of a step.

    Attributes:
      images: B.
      rollouts: N.
      prompt: P, tokens, those of the image included.
      tokens: T, of a completion.
      side: of the square image, in merged tokens (28 pixels each).
      micro_batches: of the update; the fastest of these counts.
      plain_micro_batches: the same without sharing.
    """

    images: int
    rollouts: int
    prompt: int
    tokens: int
    side: int
    micro_batches: tuple[int, ...]
    plain_micro_batches: tuple[int, ...]


# images, rollouts, prompt, tokens, side, micro-batches with sharing and without
SHAPES = {
    "short": Shape(16, 10, 98, 64, 4, (8,), (5, 20)),
    "paper": Shape(16, 10, 300, 96, 8, (8,), (5, 20, 40)),
    "long": Shape(16, 10, 1200, 96, 28, (16,), (40, 80)),
}


def _option(default: Any, help: str, choices: tuple[str, ...] = ()) -> Any:
    return dataclasses.field(default=default, metadata={"help": help, "choices": choices})


@dataclasses.dataclass(frozen=True)
class Options:
    """Holds what is the same for all shapes; each is a flag of `benchmarks`."""

    dtype: str = _option("float32", "Of weights and products.", ("float32", "bfloat16"))
    lora_rank: int = _option(16, "Of the adapters.")
    scan_unroll: int = _option(0, "config.model.scan_unroll; 0 for all layers.")
    logprob_chunk: int = _option(16, "config.train.logprob_chunk.")
    attention: str = _option("auto", "config.model.attention.", ("auto", *attention_kernels.KINDS))
    remat: str = _option("none", "config.train.remat.", ("none", "dots", "full"))
    kl_coefficient: float = _option(0.01, "0 leaves out the reference pass.")
    mean_length: int = _option(0, "About, in tokens, of completions; 0: they never end.")
    merge_lora: bool = _option(True, "config.rollout.merge_lora.")
    num_compactions: int = _option(2, "config.rollout.num_compactions.")
    num_length_buckets: int = _option(1, "config.train.num_length_buckets.")
    seed: int = _option(0, "Of weights, images and completions.")


def model_config(name: str) -> ModelConfig:
    """Returns the dimensions of "small", of a published size, or of a `config.json`.

    Raises:
      ValueError: `name` is none of them.
    """
    if name == "small":
        return SMALL
    if name in presets.CONFIGS:
        return presets.CONFIGS[name]
    path = pathlib.Path(name)
    if not path.is_file():
        sizes = ["small", *presets.CONFIGS]
        raise ValueError(f"--model={name} is neither one of {sizes}, nor a config.json")
    return ModelConfig.from_hf(json.loads(path.read_text()))


def random_policy(config: ModelConfig, options: Options) -> tuple[Any, nnx.State, nnx.State]:
    """Makes graphdef, adapters and base of a policy whose adapters are not zero."""

    attention = options.attention
    if attention == "auto":
        attention = attention_kernels.fastest(jax.default_backend())

    def make():
        return VisionLanguageModel(
            config,
            dtype=jnp.dtype(options.dtype),
            param_dtype=jnp.dtype(options.dtype),
            lora_rank=options.lora_rank,
            lora_alpha=options.lora_rank,
            scan_unroll=options.scan_unroll or config.text.num_layers,
            attention=attention,
            rngs=nnx.Rngs(0),
        )

    graphdef, lora, base = nnx.split(nnx.eval_shape(make), nnx.LoRAParam, ...)
    rng = np.random.default_rng(options.seed)

    def fill(path, p):
        name = jax.tree_util.keystr(path)
        value = 0.02 * rng.standard_normal(p.shape, np.float32)
        return jnp.asarray(value + ("norm" in name), p.dtype)

    return graphdef, *jax.tree_util.tree_map_with_path(fill, (lora, base))


def random_batch(config: ModelConfig, shape: Shape, seed: int) -> PromptBatch:
    """Makes random images, each inside a prompt of random text; there is no padding."""
    rng = np.random.default_rng(seed)
    merge = config.vision.spatial_merge_size
    placeholders = shape.side**2
    text = shape.prompt - placeholders - 2
    if text < 2:
        raise ValueError(f"a prompt of {shape.prompt} tokens cannot hold {placeholders} of image")
    special = min(config.image_token_id, *config.eos_token_id, config.vision_start_token_id)
    words_BP = rng.integers(0, special, (shape.images, text))
    image = [config.vision_start_token_id, *[config.image_token_id] * placeholders]
    image_BP = np.tile([*image, config.vision_end_token_id], (shape.images, 1))
    cut = text // 4
    tokens_BP = np.concatenate([words_BP[:, :cut], image_BP, words_BP[:, cut:]], axis=1)
    tokens_BP = tokens_BP.astype(np.int32)
    mask_BP = np.ones(tokens_BP.shape, bool)
    grids = [[(shape.side * merge,) * 2]] * shape.images
    positions_3BP, following_B = mrope_positions(tokens_BP, mask_BP, grids, config)
    patches = (shape.images, placeholders * merge**2, config.vision.patch_dim)
    return PromptBatch(
        patches_BSC=rng.normal(size=patches).astype(np.float32),
        layout=vision_layout(grids, config.vision),
        tokens_BP=tokens_BP,
        mask_BP=mask_BP,
        positions_B3P=positions_3BP.swapaxes(0, 1),
        next_position_B=following_B,
        image_id_B=np.arange(shape.images, dtype=np.uint32),
        label_index_B=np.zeros(shape.images, np.int32),
        weight_B=np.ones(shape.images, np.float32),
    )


def allowed_tokens(config: ModelConfig, mean_length: int, seed: int) -> np.ndarray:
    """Chooses the tokens that may be sampled.

    Args:
      config: dimensions and special tokens.
      mean_length: 0 allows all but special tokens and the end. Otherwise so few are allowed, the
        end among them, that random weights end a completion after about this many tokens.
      seed: of the choice.

    Returns:
      bool [V].
    """
    words = np.arange(min(config.image_token_id, *config.eos_token_id))
    if mean_length:
        words = np.random.default_rng(seed).choice(words, mean_length - 1, replace=False)
        words = np.append(words, config.eos_token_id)
    allowed_V = np.zeros(config.text.vocab_size, bool)
    allowed_V[words] = True
    return allowed_V


class Workload:
    """The programs of one shape, with sharing or without, and their inputs."""

    def __init__(self, config: ModelConfig, shape: Shape, shared: bool, options: Options, policy):
        self.config, self.shape, self.shared, self.options = config, shape, shared, options
        self.candidates = shape.micro_batches if shared else shape.plain_micro_batches
        self.micro_batches = self.candidates[0]
        self.graphdef, self.lora, self.base = policy
        batch = random_batch(config, shape, options.seed)
        if not shared:
            batch = jax.tree.map(lambda x: np.repeat(x, shape.rollouts, axis=0), batch)
            # A random key of its own for each row, as for N rollouts of one image.
            batch = batch.replace(image_id_B=np.arange(len(batch.image_id_B), dtype=np.uint32))
        self.batch = jax.device_put(batch)
        allowed_V = allowed_tokens(config, options.mean_length, options.seed)
        self.banned_V = jnp.asarray(~allowed_V)
        self.optimizer = optimizer.make(
            learning_rate=3e-5,
            warmup_steps=0,
            decay_steps=0,
            weight_decay=0.01,
            b1=0.9,
            b2=0.999,
            epsilon=1e-8,
            max_grad_norm=1.0,
        )

    def state(self) -> TrainState:
        return init_state(self.lora, self.optimizer)

    def rollout(self, lora, base, batch):
        return sample_and_verify.sample(
            lora,
            base,
            batch,
            jax.random.key(self.options.seed),
            np.float32(1.0),
            np.float32(1.0),
            graphdef=self.graphdef,
            num_rollouts=self.shape.rollouts if self.shared else 1,
            max_tokens=self.shape.tokens,
            end_ids=self.config.eos_token_id,
            banned_V=self.banned_V,
            merge_lora=self.options.merge_lora,
            num_compactions=self.options.num_compactions if self.shared else 0,
        )

    def update(self, state, base, batch, features_BMD, rollout, micro_batches=None):
        """Computes rewards and advantages and updates once; plain runs the vision encoder again."""
        if not self.shared:
            policy = nnx.merge(self.graphdef, state.lora, base)
            features_BMD = policy.encode_images(batch.patches_BSC, batch.layout)
        # Free verdicts: the verifier is not measured here.
        category = jnp.sum(rollout.tokens_BNT, axis=-1) % 6
        group = (self.shape.images, self.shape.rollouts)
        category_BN, valid_BN = category.reshape(group), jnp.ones(group, bool)
        reward_BN = best_prediction.reward(category_BN, valid_BN)
        advantage_BN = advantages.group_advantages(reward_BN, valid_BN)
        whole = UpdateBatch(
            prompt=batch,
            features_BMD=features_BMD,
            rollout=rollout,
            advantage_BN=advantage_BN.reshape(category.shape),
            valid_BN=valid_BN.reshape(category.shape),
        )
        return update_lib.update(
            state,
            base,
            whole,
            algorithm=self.algorithm(micro_batches),
            graphdef=self.graphdef,
            banned_V=self.banned_V,
            optimizer=self.optimizer,
        )

    def algorithm(self, micro_batches: int | None = None) -> Algorithm:
        """Returns GRPO with the best-prediction reward and one update a step."""
        options = self.options
        return Algorithm(
            reward=best_prediction.reward,
            min_judged_fraction=1.0,
            advantages=advantages.group_advantages,
            policy_loss=grpo.policy_loss,
            token_weights=token_weights.token_mean,
            kl=kl.k3,
            kl_coefficient=options.kl_coefficient,
            kl_schedule=None,
            kl_in="loss",
            kl_unlabelled=0.0,
            reference_decay=1.0,
            old_logprobs="rollout",
            tis_cap=0.0,
            tis_level="token",
            kept=None,
            entropy_coefficient=0.0,
            rank_coefficient=0.0,
            temperature=np.float32(1.0),
            mini_batches=1,
            ppo_epochs=1,
            micro_batches=micro_batches or self.micro_batches,
            num_length_buckets=options.num_length_buckets,
            logprob_chunk=options.logprob_chunk,
            remat=options.remat,
            num_logged_images=0,
        )

    def step(self, state, base, batch):
        features_BMD, rollout = self.rollout(state.lora, base, batch)
        return self.update(state, base, batch, features_BMD, rollout)
