"""Limits of a step: the rates of the machine, and the FLOPs and bytes that no step can avoid."""

import dataclasses
import os
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.workload import Options, Shape
from speciarl_jax.models.decoder.text_config import TextConfig
from speciarl_jax.models.qwen2_5_vl.config import ModelConfig, VisionConfig


@dataclasses.dataclass(frozen=True)
class Clock:
    """Reads seconds: `wall` time, or `cpu`, the processor time of this process / its cores.

    `cpu` does not count what other programs take on a busy machine. On an idle machine both agree
    if all cores are in use; otherwise `cpu` is less.
    """

    name: str

    def __call__(self) -> float:
        if self.name == "cpu":
            return time.process_time() / len(os.sched_getaffinity(0))
        return time.perf_counter()

    def time(self, program: Callable, *args: Any) -> float:
        """Returns the seconds that a program takes."""
        begun = self()
        jax.block_until_ready(program(*args))
        return self() - begun


class Machine:
    """Measures the rates of the machine.

    Attributes:
      clock: measures.
      gemm_rate: () -> FLOP/s of square matrix products, the best of five.
      memory_rate: () -> bytes/s read and written by a copy of 256 MB, the best of five.
    """

    def __init__(self, dtype: Any, size: int, clock: Clock):
        """Compiles both programs.

        Args:
          dtype: of the matrices.
          size: side of the matrices.
          clock: measures.
        """
        self.clock = clock
        # With this variance, repeated products neither grow nor vanish.
        matrix = (jax.random.normal(jax.random.key(0), (size, size)) / size**0.5).astype(dtype)
        array = jnp.zeros(2**26, jnp.float32)
        self.gemm_rate = self._meter(lambda a, matrix: a @ matrix, matrix, 2.0 * size**3)
        self.memory_rate = self._meter(lambda x, _: x + 1, array, 2.0 * array.nbytes)

    def _meter(self, function: Callable, first: jax.Array, work: float) -> Callable[[], float]:
        """Compiles a loop of `function` of about 0.1 s, so that starting a program does not count.

        Args:
          function: (its last result, first) -> result.
          first: array that the loop begins with.
          work: of one call.

        Returns:
          () -> work a second.
        """
        once = jax.jit(function).lower(first, first).compile()
        self.clock.time(once, first, first)
        times = max(1, round(0.1 / max(self.clock.time(once, first, first), 1e-6)))

        def repeated(first):
            return jax.lax.fori_loop(0, times, lambda _, x: function(x, first), first)

        program = jax.jit(repeated).lower(first).compile()
        self.clock.time(program, first)
        return lambda: work * times / min(self.clock.time(program, first) for _ in range(5))


def _layer_weights(text: TextConfig, rank: int) -> tuple[np.ndarray, np.ndarray]:
    """Counts [frozen, LoRA] weights of a layer's linear parts: of all, and of keys and values."""
    heads, kv = text.num_heads * text.head_dim, text.num_kv_heads * text.head_dim
    hidden, mlp = text.hidden_size, text.intermediate_size
    others = [(hidden, heads), (heads, hidden), (hidden, mlp), (hidden, mlp), (mlp, hidden)]

    def count(sides):
        return np.array([sum(a * b for a, b in sides), rank * sum(a + b for a, b in sides)])

    keys_values = count([(hidden, kv)] * 2)
    return keys_values + count(others), keys_values


class _Pass(NamedTuple):
    """Multiply-adds of the decoder over prompts and given completions, without the head.

    Attributes:
      kernels: with frozen weights.
      adapters: with LoRA.
      attention: scores and sums of values; half of the square where it is causal.
      embedded: the part of `kernels` and `adapters` that reads the embeddings (queries, keys and
        values of the first layer). No gradient flows through it: nothing before it is trained.
    """

    kernels: float
    adapters: float
    attention: float
    embedded: float


def _decoder_pass(text: TextConfig, rank: int, prompt: int, run_BN: np.ndarray) -> _Pass:
    """Counts a pass over prompts of `prompt` tokens and completions of `run_BN` tokens.

    All layers but the last run every token. The last needs only keys and values of a prompt, but
    for its last token.
    """
    (whole, keys_values), inner = _layer_weights(text, rank), text.num_layers - 1
    width, hidden = text.num_heads * text.head_dim, text.hidden_size
    images, completed = len(run_BN), run_BN.sum()
    tokens, read = images * prompt + completed, images + completed
    own_pairs = (run_BN * (prompt + run_BN / 2)).sum()
    pairs, read_pairs = images * prompt**2 / 2 + own_pairs, images * prompt + own_pairs
    kernels, adapters = tokens * (inner * whole + keys_values) + read * (whole - keys_values)
    queries = (tokens if inner else read) * hidden * (width + rank)
    return _Pass(
        kernels,
        adapters,
        attention=2 * width * (inner * pairs + read_pairs),
        embedded=tokens * (keys_values[0] + 2 * rank * hidden) + queries,
    )


def update_useful_flops(
    config: ModelConfig, shape: Shape, options: Options, lengths_BN: np.ndarray
) -> float:
    """Counts the FLOPs that an update of the adapters cannot avoid; a multiply-add is two.

    Each prompt and each token of a completion once, the last layer only where it is read
    (`_decoder_pass`), and the head at completions. Nothing that is computed again counts, and no
    gradient of a frozen weight.

    Args:
      config: dimensions.
      shape: of the step.
      options: the rank, and whether there is a reference.
      lengths_BN: tokens of each completion.
    """
    text = config.text
    # Nothing is predicted from the last token.
    work = _decoder_pass(text, options.lora_rank, shape.prompt, lengths_BN - 1.0)
    head = lengths_BN.sum() * text.hidden_size * text.vocab_size
    reference = work.kernels + work.attention + head
    policy = 2 * work.kernels + 3 * work.adapters - work.embedded + 3 * work.attention + 2 * head
    return float(2 * (policy + (reference if options.kl_coefficient else 0)))


def rollout_useful_flops(
    config: ModelConfig, shape: Shape, options: Options, lengths_BN: np.ndarray
) -> float:
    """Counts the FLOPs that a rollout cannot avoid; arguments as for `update_useful_flops`.

    The vision encoder and the prefill once an image, each sampled token once, adapters merged.
    """
    text, run_BN = config.text, lengths_BN - 1.0
    nothing_BN = np.zeros((len(lengths_BN), 0))
    prefill = _decoder_pass(text, options.lora_rank, shape.prompt, nothing_BN)
    (kernels, _), _ = _layer_weights(text, options.lora_rank)
    pairs = (run_BN * (shape.prompt + run_BN / 2)).sum()
    decode = run_BN.sum() * kernels + 2 * pairs * text.num_heads * text.head_dim
    head = lengths_BN.sum() * text.hidden_size * text.vocab_size
    decoder = prefill.kernels + prefill.adapters + prefill.attention + text.num_layers * decode
    return float(len(lengths_BN) * _vision_flops(config.vision, shape.side) + 2 * (decoder + head))


def _vision_flops(vision: VisionConfig, side: int) -> float:
    """Counts the FLOPs of the vision encoder for a square image of `side` merged tokens."""
    width, merge = vision.hidden_size, vision.spatial_merge_size
    patches, window = (side * merge) ** 2, (vision.window_units * merge) ** 2
    full = len(vision.full_attention_layers)
    seen = full * patches + (vision.depth - full) * min(window, patches)
    linear = vision.depth * (4 * width**2 + 3 * width * vision.intermediate_size)
    merged = width * merge**2
    merger = side**2 * (merged**2 + merged * vision.out_hidden_size)
    return 2.0 * patches * (vision.patch_dim * width + linear + 2 * seen * width) + 2.0 * merger


def decode_bytes(
    config: ModelConfig, shape: Shape, options: Options, lengths_BN: np.ndarray
) -> float:
    """Counts the bytes that decoding reads at least; arguments as for `update_useful_flops`.

    Each step reads the weights, the cache of each prompt once, and those of the completions.
    """
    text, run_BN = config.text, lengths_BN - 1.0
    (kernels, _), _ = _layer_weights(text, options.lora_rank)
    weights = text.num_layers * kernels + text.hidden_size * text.vocab_size
    cached = shape.prompt * run_BN.max(axis=1).sum() + (run_BN**2 / 2).sum()
    values = 2 * text.num_layers * text.num_kv_heads * text.head_dim * cached
    return float(jnp.dtype(options.dtype).itemsize * (run_BN.max() * weights + values))
