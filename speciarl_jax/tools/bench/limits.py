"""What bounds a step: the machine's rates, and the work that cannot be left out."""

import dataclasses
import os
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from speciarl_jax.models.qwen2_5_vl.config import ModelConfig, TextConfig, VisionConfig
from speciarl_jax.tools.bench.workload import Options, Shape


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

    def __init__(self, dtype: Any, size: int, clock: Clock, seconds: float = 0.1):
        """Compiles products of `size` x `size` matrices and copies of 256 MB.

        Args:
          dtype: of the matrices.
          size: their side.
          clock: that measures.
          seconds: a measurement runs as many, one after the other in one program, as take about so
            long; what it takes to start a program then does not count.
        """
        self._clock = clock
        # Of a variance with which products neither grow nor vanish.
        matrix = jax.random.normal(jax.random.key(0), (size, size)) / size**0.5
        self._matrix = matrix.astype(dtype)
        self._array = jnp.zeros(2**26, jnp.float32)
        self._product = self._repeated(lambda a, matrix: a @ matrix, self._matrix, seconds)
        self._copy = self._repeated(lambda x, _: x + 1, self._array, seconds)

    def _repeated(self, function: Callable, first: jax.Array, seconds: float):
        """A program that calls `function(result, first)` on its own result, and how often."""
        once = jax.jit(function).lower(first, first).compile()
        self._clock.time(once, first, first)
        times = max(1, round(seconds / max(self._clock.time(once, first, first)[0], 1e-6)))

        def program(first):
            return jax.lax.fori_loop(0, times, lambda _, x: function(x, first), first)

        program = jax.jit(program).lower(first).compile()
        self._clock.time(program, first)
        return program, times

    def _rate(self, repeated: tuple[Callable, int], first: jax.Array, work: float) -> float:
        program, times = repeated
        return work * times / min(self._clock.time(program, first)[0] for _ in range(5))

    def gemm_rate(self) -> float:
        """FLOP/s, the best of five."""
        return self._rate(self._product, self._matrix, 2.0 * len(self._matrix) ** 3)

    def memory_rate(self) -> float:
        """Bytes/s read and written, the best of five."""
        return self._rate(self._copy, self._array, 2.0 * self._array.nbytes)


@dataclasses.dataclass(frozen=True)
class _Layer:
    """Weights of a decoder layer's linear parts and of their adapters; `width`: all query heads."""

    kernels: int
    adapters: int
    kv_kernels: int
    kv_adapters: int
    width: int

    @classmethod
    def of(cls, text: TextConfig, rank: int) -> "_Layer":
        heads, kv = text.num_heads * text.head_dim, text.num_kv_heads * text.head_dim
        hidden, mlp = text.hidden_size, text.intermediate_size
        others = [(hidden, heads), (heads, hidden), (hidden, mlp), (hidden, mlp), (mlp, hidden)]
        kv_kernels, kv_adapters = 2 * hidden * kv, 2 * rank * (hidden + kv)
        kernels = kv_kernels + sum(a * b for a, b in others)
        adapters = kv_adapters + rank * sum(a + b for a, b in others)
        return cls(kernels, adapters, kv_kernels, kv_adapters, heads)


@dataclasses.dataclass(frozen=True)
class _Pass:
    """Multiply-adds of a decoder over prompts and given answers, without the head.

    All layers but the last run every token. Of the last, only the answers and the last token of
    each prompt are read, so that of the prompts' other tokens it needs keys and values alone.

    Attributes:
      kernels: with frozen weights.
      adapters: with adapters.
      attention: scores, and sums of values; half of the square where it is causal.
      embedded: with what of both reads the embeddings (queries, keys and values of the first
        layer), through which no gradient has to flow: nothing before them is trained.
    """

    kernels: float
    adapters: float
    attention: float
    embedded: float

    @classmethod
    def of(cls, text: TextConfig, rank: int, prompt: int, run_BN: np.ndarray) -> "_Pass":
        layer, inner = _Layer.of(text, rank), text.num_layers - 1
        images, answered = len(run_BN), run_BN.sum()
        tokens, read = images * prompt + answered, images + answered
        own_pairs = (run_BN * (prompt + run_BN / 2)).sum()
        pairs, read_pairs = images * prompt**2 / 2 + own_pairs, images * prompt + own_pairs

        def linear(whole, kv):
            return tokens * (inner * whole + kv) + read * (whole - kv)

        keys_values = layer.kv_kernels + 2 * rank * text.hidden_size
        queries = text.hidden_size * (layer.width + rank)
        return cls(
            kernels=linear(layer.kernels, layer.kv_kernels),
            adapters=linear(layer.adapters, layer.kv_adapters),
            attention=2 * layer.width * (inner * pairs + read_pairs),
            embedded=tokens * keys_values + (tokens if inner else read) * queries,
        )


def update_useful_flops(
    config: ModelConfig, shape: Shape, options: Options, lengths_BN: np.ndarray
) -> float:
    """FLOPs that an update of the adapters cannot do without; a multiply-add is two.

    Each prompt and each token of an answer once, in the last layer only what is read (`_Pass`); the
    head at answer positions; no product that is computed again; no gradient of a frozen weight.

    Args:
      config: dimensions.
      shape: of the step.
      options: the rank, and whether there is a reference.
      lengths_BN: tokens of each answer.
    """
    text = config.text
    # Nothing is predicted from the last token.
    work = _Pass.of(text, options.lora_rank, shape.prompt, lengths_BN - 1.0)
    head = lengths_BN.sum() * text.hidden_size * text.vocab_size
    reference = work.kernels + work.attention + head
    policy = 2 * work.kernels + 3 * work.adapters - work.embedded + 3 * work.attention + 2 * head
    return float(2 * (policy + (reference if options.kl_coefficient else 0)))


def rollout_useful_flops(
    config: ModelConfig, shape: Shape, options: Options, lengths_BN: np.ndarray
) -> float:
    """FLOPs that a rollout cannot do without: encoder and prefill once an image, each token once.

    Args: as for `update_useful_flops`. The adapters are taken for merged in decoding.
    """
    text, layer = config.text, _Layer.of(config.text, options.lora_rank)
    run_BN = lengths_BN - 1.0
    prefill = _Pass.of(text, options.lora_rank, shape.prompt, np.zeros((len(lengths_BN), 0)))
    pairs = (run_BN * (shape.prompt + run_BN / 2)).sum()
    decode = run_BN.sum() * layer.kernels + 2 * pairs * layer.width
    head = lengths_BN.sum() * text.hidden_size * text.vocab_size
    decoder = prefill.kernels + prefill.adapters + prefill.attention + text.num_layers * decode
    return float(len(lengths_BN) * _vision_flops(config.vision, shape.side) + 2 * (decoder + head))


def _vision_flops(vision: VisionConfig, side: int) -> float:
    """Of the encoder, for a square image of `side` merged tokens."""
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
    """Bytes that decoding reads at least: weights, prompts' caches once, the answers' so far.

    Args: as for `update_useful_flops`.
    """
    text, layer = config.text, _Layer.of(config.text, options.lora_rank)
    weights = text.num_layers * layer.kernels + text.hidden_size * text.vocab_size
    run_BN = lengths_BN - 1.0
    cached = shape.prompt * run_BN.max(axis=1).sum() + (run_BN**2 / 2).sum()
    values = 2 * text.num_layers * text.num_kv_heads * text.head_dim * cached
    return float(jnp.dtype(options.dtype).itemsize * (run_BN.max() * weights + values))
