"""What bounds a step: the machine's rates, and the work that cannot be left out."""

import dataclasses
import os
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from speciarl_jax.benchmarking.workload import Options, Shape
from speciarl_jax.models.qwen2_5_vl.config import ModelConfig


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
