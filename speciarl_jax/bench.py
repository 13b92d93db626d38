"""Measures a training step on random weights, with what a group shares and without.

    python -m speciarl_jax.bench --shapes=short,paper --json=bench.json
    python -m speciarl_jax.bench --shapes=paper --rollouts=1,2,5,10,20,64 --plot=docs/rollouts.png

No checkpoint is needed: the dimensions are those of `SMALL` (5.67 million parameters), of a
published size (--model=3B) or of a `config.json` (--model=PATH). Answers never end, unless
--mean_length asks for answers of random lengths. The plain counterpart gives every answer its own
picture, vision pass, prefill, and whole sequence in the update, by the same code.
"""

import collections
import dataclasses
import json
import os
import pathlib
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags, logging
from flax import nnx

from speciarl_jax import advantages, optimizer, step
from speciarl_jax import update as update_lib
from speciarl_jax.losses import grpo, token_weights
from speciarl_jax.models.qwen2_5_vl import presets
from speciarl_jax.models.qwen2_5_vl.config import ModelConfig, TextConfig, VisionConfig
from speciarl_jax.models.qwen2_5_vl.layout import mrope_positions, vision_layout
from speciarl_jax.models.qwen2_5_vl.model import Qwen25VL
from speciarl_jax.rewards import best_prediction
from speciarl_jax.types import PromptBatch, UpdateBatch

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
    eos_token_id=4094,
)


@dataclasses.dataclass(frozen=True)
class Shape:
    """What a step looks like.

    Attributes:
      images: B.
      answers: N.
      prompt: P, tokens, those of the picture included.
      tokens: T, of an answer.
      side: of the square picture, in merged tokens (28 pixels each).
      parts: micro-batches of the update.
      plain_parts: the same without sharing.
    """

    images: int
    answers: int
    prompt: int
    tokens: int
    side: int
    parts: int
    plain_parts: int


SHAPES = {
    "short": Shape(images=16, answers=10, prompt=98, tokens=64, side=4, parts=8, plain_parts=5),
    "paper": Shape(images=16, answers=10, prompt=300, tokens=96, side=8, parts=8, plain_parts=5),
    "long": Shape(images=16, answers=10, prompt=1200, tokens=96, side=28, parts=16, plain_parts=20),
}


@dataclasses.dataclass(frozen=True)
class Options:
    """What is the same for all shapes; the flags of the same names explain them."""

    dtype: Any
    lora_rank: int
    scan_unroll: int
    logprob_chunk: int
    remat: str
    kl_coefficient: float
    mean_length: int
    merge_lora: bool
    shrink: int
    seed: int


def model_config(name: str) -> ModelConfig:
    """`SMALL` by the name "small", a published size, or the dimensions in a `config.json`.

    Raises:
      ValueError: none of them.
    """
    if name == "small":
        return SMALL
    if name in presets.SIZES:
        return presets.config(name)
    path = pathlib.Path(name)
    if not path.is_file():
        raise ValueError(
            f"--model={name} is neither 'small', nor one of {presets.SIZES}, nor a config.json"
        )
    return ModelConfig.from_hf(json.loads(path.read_text()))


def random_policy(config: ModelConfig, options: Options) -> tuple[Any, nnx.State, nnx.State]:
    """graphdef, adapters and base of a policy whose adapters do something."""

    def make():
        return Qwen25VL(
            config,
            dtype=options.dtype,
            param_dtype=options.dtype,
            lora_rank=options.lora_rank,
            lora_alpha=options.lora_rank,
            scan_unroll=options.scan_unroll,
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
    """Random pictures, each with a prompt of random text around it; no padding."""
    rng = np.random.default_rng(seed)
    merge = config.vision.spatial_merge_size
    placeholders = shape.side**2
    text = shape.prompt - placeholders - 2
    if text < 2:
        raise ValueError(f"a prompt of {shape.prompt} tokens cannot hold {placeholders} of picture")
    special = min(config.image_token_id, config.eos_token_id, config.vision_start_token_id)
    words_BP = rng.integers(0, special, (shape.images, text))
    picture = [config.vision_start_token_id, *[config.image_token_id] * placeholders]
    picture_BP = np.tile([*picture, config.vision_end_token_id], (shape.images, 1))
    cut = text // 4
    tokens_BP = np.concatenate([words_BP[:, :cut], picture_BP, words_BP[:, cut:]], axis=1)
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
    """bool [V], what may be sampled: all but special tokens and the end (`mean_length` 0).

    Otherwise so few tokens, the end among them, that random weights end an answer after about
    `mean_length`.
    """
    allowed_V = np.zeros(config.text.vocab_size, bool)
    if not mean_length:
        allowed_V[: min(config.image_token_id, config.eos_token_id)] = True
        return allowed_V
    words = np.random.default_rng(seed).choice(
        min(config.image_token_id, config.eos_token_id), mean_length - 1, replace=False
    )
    allowed_V[words] = allowed_V[config.eos_token_id] = True
    return allowed_V


class Workload:
    """The programs of one shape, with sharing or without, and their inputs."""

    def __init__(self, config: ModelConfig, shape: Shape, shared: bool, options: Options, policy):
        self.config, self.shape, self.shared, self.options = config, shape, shared, options
        self.graphdef, self.lora, self.base = policy
        batch = random_batch(config, shape, options.seed)
        if not shared:
            batch = jax.tree.map(lambda x: np.repeat(x, shape.answers, axis=0), batch)
            # One key a row, as different as those of N answers about one picture.
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

    def state(self) -> update_lib.TrainState:
        return update_lib.init_state(self.lora, self.optimizer)

    def rollout(self, lora, base, batch):
        return step.sample(
            lora,
            base,
            batch,
            jax.random.key(self.options.seed),
            np.float32(1.0),
            np.float32(1.0),
            graphdef=self.graphdef,
            num_rollouts=self.shape.answers if self.shared else 1,
            max_tokens=self.shape.tokens,
            eos_id=self.config.eos_token_id,
            banned_V=self.banned_V,
            merge_lora=self.options.merge_lora,
            shrink=self.options.shrink if self.shared else 0,
        )

    def update(self, state, base, batch, features_BMD, rollout):
        """Reward, advantages, and one update; the plain one runs the vision tower again."""
        if not self.shared:
            policy = nnx.merge(self.graphdef, state.lora, base)
            features_BMD = policy.encode_images(batch.patches_BSC, batch.layout)
        options = self.options
        # A verdict that costs nothing: the verifier is not what is measured.
        category = jnp.sum(rollout.tokens_BNT, axis=-1) % 6
        group = (self.shape.images, self.shape.answers)
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
            graphdef=self.graphdef,
            optimizer=self.optimizer,
            policy_loss=grpo.policy_loss,
            token_weights=token_weights.token_mean,
            banned_V=self.banned_V,
            kl_coefficient=options.kl_coefficient,
            temperature=np.float32(1.0),
            micro_batches=self.shape.parts if self.shared else self.shape.plain_parts,
            logprob_chunk=options.logprob_chunk,
            remat=options.remat,
        )

    def step(self, state, base, batch):
        features_BMD, rollout = self.rollout(state.lora, base, batch)
        return self.update(state, base, batch, features_BMD, rollout)


@dataclasses.dataclass(frozen=True)
class Clock:
    """Seconds: `wall`, or `cpu`, the processor seconds of this process / its cores.

    The second does not count what other programs on a busy machine take. It is the first on an idle
    one if all cores are in use, and less otherwise.
    """

    name: str

    def __call__(self) -> float:
        if self.name == "cpu":
            return time.process_time() / len(os.sched_getaffinity(0))
        return time.perf_counter()

    def time(self, program: Callable, *args: Any) -> tuple[float, Any]:
        begun = self()
        out = jax.block_until_ready(program(*args))
        return self() - begun, out


class Machine:
    """The limits of the machine, measured when asked for."""

    def __init__(self, dtype: Any, size: int, clock: Clock):
        """Compiles a product of `size` x `size` matrices and a copy of 256 MB."""
        self._clock, self._flops = clock, 2.0 * size**3
        self._matrix = jax.random.normal(jax.random.key(0), (size, size), dtype)
        self._array = jnp.zeros(2**26, jnp.float32)
        self._product = jax.jit(lambda a: a @ a).lower(self._matrix).compile()
        self._copy = jax.jit(lambda x: x + 1).lower(self._array).compile()
        self.gemm_rate(), self.memory_rate()

    def gemm_rate(self) -> float:
        """FLOP/s, the best of five."""
        seconds = [self._clock.time(self._product, self._matrix)[0] for _ in range(5)]
        return self._flops / min(seconds)

    def memory_rate(self) -> float:
        """Bytes/s read and written, the best of five."""
        seconds = [self._clock.time(self._copy, self._array)[0] for _ in range(5)]
        return 2.0 * self._array.nbytes / min(seconds)


def update_useful_flops(config: ModelConfig, shape: Shape, options: Options) -> float:
    """FLOPs that an update of the adapters cannot do without; a multiply-add is two.

    Each prompt and each answer once; the head at answer positions; no product that is computed
    again; no gradient of a frozen weight; half of the square where attention is causal.
    """
    text = config.text
    heads, kv_heads = text.num_heads * text.head_dim, text.num_kv_heads * text.head_dim
    width, mlp = text.hidden_size, text.intermediate_size
    sides = [(width, heads), (width, kv_heads), (width, kv_heads), (heads, width)]
    sides += [(width, mlp), (width, mlp), (mlp, width)]
    kernels = sum(a * b for a, b in sides)
    adapters = options.lora_rank * sum(a + b for a, b in sides)
    # Nothing is predicted from the last token.
    prompt, answers, run = shape.prompt, shape.answers, shape.tokens - 1
    tokens = prompt + answers * run
    pairs = prompt**2 / 2 + answers * run * (prompt + run / 2)
    attention = 4 * pairs * heads
    head = 2 * answers * shape.tokens * width * text.vocab_size
    reference = text.num_layers * (2 * tokens * kernels + attention) + head
    policy = text.num_layers * (tokens * (4 * kernels + 6 * adapters) + 3 * attention) + 2 * head
    return shape.images * (policy + (reference if options.kl_coefficient else 0))


def decode_bytes(config: ModelConfig, shape: Shape, options: Options) -> float:
    """Bytes that decoding reads at least: weights, prompts' caches once, the answers' so far."""
    text, size = config.text, jnp.dtype(options.dtype).itemsize
    heads, kv_heads = text.num_heads * text.head_dim, text.num_kv_heads * text.head_dim
    width, mlp = text.hidden_size, text.intermediate_size
    kernels = 2 * width * heads + 2 * width * kv_heads + 3 * width * mlp
    weights = text.num_layers * kernels + width * text.vocab_size
    cached = shape.images * (shape.prompt + shape.answers * shape.tokens / 2)
    return size * (shape.tokens - 1) * (weights + 2 * text.num_layers * kv_heads * cached)


class Measurement:
    """Compiled programs of a workload and how long they took."""

    def __init__(self, workload: Workload):
        """Compiles the three programs and runs each once."""
        self.workload, self.seconds = workload, collections.defaultdict(list)
        begun = time.perf_counter()
        w, lora = workload, workload.lora
        rollout = jax.jit(w.rollout).lower(lora, w.base, w.batch).compile()
        features_BMD, answers = jax.block_until_ready(rollout(lora, w.base, w.batch))
        self.lengths = np.asarray(jnp.sum(answers.mask_BNT, axis=-1)).ravel()
        update = jax.jit(w.update, donate_argnums=0)
        update = update.lower(w.state(), w.base, w.batch, features_BMD, answers).compile()
        compile_begun = time.perf_counter()
        self.step = jax.jit(w.step, donate_argnums=0).lower(w.state(), w.base, w.batch).compile()
        self.compile_s = time.perf_counter() - compile_begun
        self.programs = {
            "rollout_s": lambda: rollout(lora, w.base, w.batch),
            "update_s": lambda: update(w.state(), w.base, w.batch, features_BMD, answers),
            "step_s": self.run_step,
        }
        jax.block_until_ready([program() for program in self.programs.values()])
        logging.info("compiled and warm after %.1f s", time.perf_counter() - begun)

    def run_step(self) -> Any:
        return self.step(self.workload.state(), self.workload.base, self.workload.batch)

    def repeat(self, clock: Clock, machine: Machine) -> None:
        """Times every program once, and the machine beside them."""
        self.seconds["gemm"].append(machine.gemm_rate())
        for name, program in self.programs.items():
            self.seconds[name].append(clock.time(program)[0])

    def row(self, name: str) -> dict[str, Any]:
        """The record of this measurement; medians."""
        w, found = self.workload, {k: statistics.median(v) for k, v in self.seconds.items()}
        memory = self.step.memory_analysis()
        return {
            "shape": name,
            "shared": w.shared,
            "rollout_tokens_per_s": float(self.lengths.sum() / found["rollout_s"]),
            "rollout_s": found["rollout_s"],
            "update_s": found["update_s"],
            "step_s": found["step_s"],
            "compile_s": self.compile_s,
            "peak_bytes": memory.argument_size_in_bytes
            + memory.output_size_in_bytes
            + memory.temp_size_in_bytes
            - memory.alias_size_in_bytes,
            "gemm_flops_per_s": found["gemm"],
            "update_useful_flops": update_useful_flops(w.config, w.shape, w.options),
        }


def describe(row: dict[str, Any], measurement: Measurement, memory_rate: float) -> str:
    """A record as text, each time as a share of the machine's limit."""
    w = measurement.workload
    useful = row["update_useful_flops"] / row["update_s"] / row["gemm_flops_per_s"]
    read = decode_bytes(w.config, w.shape, w.options) / row["rollout_s"] / memory_rate
    return (
        f"{row['shape']:12} {'shared' if row['shared'] else 'plain':6} "
        f"rollout {row['rollout_s']:7.3f} s {row['rollout_tokens_per_s']:8.0f} tok/s "
        f"({read:.0%} of memory)  "
        f"update {row['update_s']:7.3f} s ({useful:.0%} of GEMM)  step {row['step_s']:7.3f} s  "
        f"compile {row['compile_s']:5.1f} s  peak {row['peak_bytes'] / 2**20:7.0f} MiB  "
        f"GEMM {row['gemm_flops_per_s'] / 1e9:.0f} GFLOP/s"
    )


def plot(rows: Sequence[dict[str, Any]], answers: Sequence[int], path: str) -> None:
    """Seconds of a whole step against N, as a PNG, beside a line in proportion to N."""
    import matplotlib.figure

    figure = matplotlib.figure.Figure(figsize=(5, 3.5), layout="constrained")
    axes = figure.add_subplot()
    seconds = [row["step_s"] for row in rows]
    axes.plot(answers, seconds, "o-", label="measured")
    first = seconds[0] / answers[0]
    axes.plot(answers, [first * n for n in answers], ":", label="in proportion to N")
    axes.set(xlabel="answers about each picture, N", ylabel="seconds a step")
    axes.set_title(rows[0]["shape"].split("-n")[0])
    axes.set_ylim(0, 1.3 * max(seconds))
    axes.legend()
    figure.savefig(path, dpi=120, format="png")


def main(argv: Sequence[str]) -> None:
    given = flags.FLAGS
    unknown = [name for name in given.shapes if name not in SHAPES]
    if len(argv) > 1 or unknown or given.repeats < 1:
        raise app.UsageError(
            f"flags only; --shapes={','.join(given.shapes)} must be some of {','.join(SHAPES)} and "
            f"--repeats={given.repeats} at least 1"
        )
    config = model_config(given.model)
    names = [field.name for field in dataclasses.fields(Options) if field.name != "dtype"]
    options = Options(dtype=jnp.dtype(given.dtype), **{name: given[name].value for name in names})
    if not options.scan_unroll:
        options = dataclasses.replace(options, scan_unroll=config.text.num_layers)
    policy = random_policy(config, options)
    clock = Clock(given.clock)
    machine = Machine(options.dtype, given.gemm_size, clock)
    counts = [int(n) for n in given.rollouts]
    rows = []
    for name in given.shapes:
        shape = SHAPES[name]
        # With a list of N only the shared step is of interest.
        cases = [(n, True) for n in counts] or [(shape.answers, True)]
        cases += [(shape.answers, False)] if given.plain and not counts else []
        measurements = [
            Measurement(
                Workload(config, dataclasses.replace(shape, answers=n), shared, options, policy)
            )
            for n, shared in cases
        ]
        # Taking turns, so that what slows the machine down for a while slows all of them down.
        for _ in range(given.repeats):
            for measurement in measurements:
                measurement.repeat(clock, machine)
        memory_rate = machine.memory_rate()
        for (n, shared), measurement in zip(cases, measurements, strict=True):
            rows.append(measurement.row(f"{name}-n{n}" if counts else name))
            print(describe(rows[-1], measurement, memory_rate), flush=True)
            if given.profile:
                kind = rows[-1]["shape"] + ("-shared" if shared else "-plain")
                with jax.profiler.trace(str(pathlib.Path(given.profile) / kind)):
                    jax.block_until_ready(measurement.run_step())
        if counts and given.plot:
            plot(rows[-len(counts) :], counts, given.plot)
    if given.json:
        pathlib.Path(given.json).write_text(json.dumps(rows, indent=1) + "\n")


def define_flags() -> None:
    flags.DEFINE_list("shapes", ["short", "paper"], f"Some of {', '.join(SHAPES)}.")
    flags.DEFINE_string("model", "small", "small, 3B, 7B, 32B, 72B, or a config.json.")
    flags.DEFINE_enum("dtype", "float32", ["float32", "bfloat16"], "Of weights and products.")
    flags.DEFINE_string("json", None, "File for the list of records.")
    flags.DEFINE_bool("plain", True, "Also measure without sharing.")
    flags.DEFINE_list("rollouts", [], "Measure these N, with sharing only.")
    flags.DEFINE_string("plot", None, "PNG of the step's seconds against --rollouts, one shape.")
    flags.DEFINE_string("profile", None, "Folder for a trace of one step of each.")
    flags.DEFINE_integer("repeats", 5, "Of every program; the median counts.")
    flags.DEFINE_enum("clock", "wall", ["wall", "cpu"], "Seconds of the wall, or of the processor.")
    flags.DEFINE_integer("gemm_size", 2048, "Side of the matrices that give the GEMM rate.")
    flags.DEFINE_integer("lora_rank", 16, "Of the adapters.")
    flags.DEFINE_integer("scan_unroll", 0, "config.model.scan_unroll; 0 for all layers.")
    flags.DEFINE_integer("logprob_chunk", 16, "config.train.logprob_chunk.")
    flags.DEFINE_enum("remat", "none", ["none", "dots", "full"], "config.train.remat.")
    flags.DEFINE_float("kl_coefficient", 0.01, "0 leaves out the reference pass.")
    flags.DEFINE_integer("mean_length", 0, "Of the answers, about; 0 for answers that never end.")
    flags.DEFINE_bool("merge_lora", True, "config.rollout.merge_lora.")
    flags.DEFINE_integer("shrink", 2, "config.rollout.shrink.")
    flags.DEFINE_integer("seed", 0, "Of weights, pictures and answers.")


if __name__ == "__main__":
    define_flags()
    app.run(main)
