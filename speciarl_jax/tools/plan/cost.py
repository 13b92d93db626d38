"""Our own count of FLOPs and bytes of a step, and of the arrays that stay; a multiply-add is two.

XLA's cost analysis counts the body of a loop once. These counts follow the code instead: squares of
attention whole, as they are computed; what the backward pass computes again counted again.
"""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import qwix
from flax import nnx

from speciarl_jax.models import family, int8
from speciarl_jax.models.decoder.decoder_weights import LINEARS
from speciarl_jax.models.decoder.text_config import TextConfig
from speciarl_jax.rollout import kv_cache_budget
from speciarl_jax.runtime import sharding
from speciarl_jax.tools.plan.chips import Chip
from speciarl_jax.tools.plan.programs import Abstract


@dataclasses.dataclass(frozen=True)
class Phase:
    """A part of a program, on one chip."""

    name: str
    flops: float
    bytes: float  # read from and written to the chip's memory

    def seconds(self, chip: Chip) -> float:
        """The longer of the two limits."""
        return max(self.flops / chip.flops, self.bytes / chip.memory_rate)


@dataclasses.dataclass(frozen=True)
class _Layer:
    """Sides of a decoder layer, or a block of the encoder, and their sums."""

    kernels: int  # weights of the linear layers
    adapters: int  # weights of LoRA
    traffic: int  # values that the linear layers read and write for a token
    heads: int  # values of all queries of a token


def phases(plan: Abstract, name: str) -> list[Phase]:
    """Counts the parts of a program of `programs.programs`, each on one chip.

    Verifying is not counted, nor are greedy answers.
    """
    if name in ("verify", "evaluate"):
        return []
    sampled = [] if plan.run.config.train.objective == "sft" else _rollout(plan)
    return {"rollout": sampled, "update": _update(plan), "step": [*sampled, *_update(plan)]}[name]


def shard_bytes(tree: Any) -> int:
    """Bytes on a chip of arrays or shapes that know their shardings."""
    total = 0
    for x in jax.tree.leaves(tree):
        shape = x.sharding.shard_shape(x.shape) if getattr(x, "sharding", None) else x.shape
        # A PRNG key, say, is no array of plain numbers.
        total += math.prod(shape) * jnp.dtype(x.dtype).itemsize
    return total


def cache_bytes(plan: Abstract) -> int:
    """Bytes on a chip of the caches of the images that are sampled at once, answers at full
    length, without the copy that a loop is made narrower with."""
    config, text = plan.run.config, plan.run.model_config.text
    rollout = config.rollout
    token = kv_cache_budget.token_bytes(text, jnp.dtype(config.model.dtype), rollout.kv_cache)
    one = kv_cache_budget.image_bytes(
        token,
        prompt=plan.sizes.prompt_tokens,
        answers=rollout.num_rollouts,
        tokens=rollout.max_tokens,
        num_compactions=0,
    )
    images = plan.sampled // chunks(plan) // sharding.batch_parts(plan.run.mesh)
    return one * images // _cuts(plan, text.num_kv_heads)


def chunks(plan: Abstract) -> int:
    """Parts that a batch is sampled in."""
    rollout = plan.run.config.rollout
    count = plan.run.chunks(rollout.num_rollouts, rollout.max_tokens, kv_cache=rollout.kv_cache)
    return count(plan.sampled, plan.sizes.prompt_tokens)


def _cuts(plan: Abstract, size: int) -> int:
    """Parts that an axis of so many heads is cut into."""
    tensor = plan.run.mesh.shape["tensor"]
    return tensor if size % tensor == 0 else 1


def _decoder_layer(text: TextConfig, rank: int) -> _Layer:
    heads, kv = text.num_heads * text.head_dim, text.num_kv_heads * text.head_dim
    width, mlp = text.hidden_size, text.intermediate_size
    sides = [(width, heads), (width, kv), (width, kv), (heads, width)]
    sides += [(width, mlp), (width, mlp), (mlp, width)]
    return _Layer(
        kernels=sum(a * b for a, b in sides),
        adapters=rank * sum(a + b for a, b in sides),
        traffic=sum(a + b for a, b in sides),
        heads=heads,
    )


def _vision(plan: Abstract) -> Phase:
    """The encoder, for all images of a step, on one chip."""
    model, sizes = plan.run.model_config, plan.sizes
    cost = family.of(model).encoder_cost(model.vision, sizes.slots, sizes.image_tokens)
    images = plan.sampled / plan.run.mesh.size
    return Phase("vision", *(each * images for each in cost))


def _rollout(plan: Abstract) -> list[Phase]:
    config, model = plan.run.config, plan.run.model_config
    text, size = model.text, jnp.dtype(config.model.dtype).itemsize
    chips, tensor = plan.run.mesh.size, plan.run.mesh.shape["tensor"]
    parts, answers, length = chunks(plan), config.rollout.num_rollouts, config.rollout.max_tokens
    prompt, images = plan.sizes.prompt_tokens, plan.sampled
    merged = config.rollout.merge_lora
    layer = _decoder_layer(text, config.model.lora_rank)
    weights = kernel_bytes(plan) / tensor
    head = 2 * text.hidden_size * text.vocab_size

    each = 2 * (layer.kernels + layer.adapters) * prompt + 4 * prompt**2 * layer.heads
    moved = prompt * layer.traffic * size + 8 * prompt**2 * text.num_heads
    prefill = Phase(
        "prefill",
        images * (text.num_layers * each + answers * head) / chips,
        images * text.num_layers * moved / chips + parts * weights,
    )
    rows, steps = images * answers, length - 1
    each = 2 * (layer.kernels + (0 if merged else layer.adapters))
    each += 4 * (prompt + length) * layer.heads
    reads = decode_reads(plan)
    decode = Phase(
        "decode",
        steps * rows * (text.num_layers * each + head) / chips,
        sum(reads.values()) + steps * rows * text.vocab_size * 8 / chips,
    )
    return [_vision(plan), prefill, decode]


def decode_reads(plan: Abstract) -> dict[str, float]:
    """Counts the bytes that decoding reads on a chip: for each token, all weights and caches."""
    config, tensor = plan.run.config, plan.run.mesh.shape["tensor"]
    turns = (config.rollout.max_tokens - 1) * chunks(plan)
    weights = kernel_bytes(plan, config.rollout.decode_weights) / tensor
    return {"weights": turns * weights, "caches": float(turns * cache_bytes(plan))}


def _update(plan: Abstract) -> list[Phase]:
    config, model = plan.run.config, plan.run.model_config
    text, size = model.text, jnp.dtype(config.model.dtype).itemsize
    chips, tensor = plan.run.mesh.size, plan.run.mesh.shape["tensor"]
    labels = config.train.objective == "sft"
    answers, run = 1 if labels else config.rollout.num_rollouts, config.rollout.max_tokens - 1
    prompt, passes = plan.sizes.prompt_tokens, config.train.ppo_epochs
    layer = _decoder_layer(text, config.model.lora_rank)
    again = config.train.remat
    reference = int(bool(config.loss.kl_coefficient or config.loss.kl_unlabelled)) + int(
        config.loss.old_logprobs == "recomputed" and config.train.mini_batches * passes > 1
    )
    tokens = prompt + answers * run
    pairs = prompt**2 + answers * run * (prompt + run)
    # Forward, backward to the inputs, and forward again; of the adapters' weights too.
    linear = 2 + (again == "full")
    attention = 3 + (again != "none")
    policy = 2 * tokens * (layer.kernels * linear + layer.adapters * (linear + 1))
    policy += 4 * pairs * layer.heads * attention
    frozen = 2 * tokens * layer.kernels + 4 * pairs * layer.heads
    head = 2 * answers * (run + 1) * text.hidden_size * text.vocab_size
    # The gradient of the entropy is one more product with the head.
    heads = 2 + reference + (config.loss.entropy_coefficient > 0 and not labels)
    flops = text.num_layers * (policy + reference * frozen) + head * heads
    turns = config.train.mini_batches * config.train.micro_batches * passes
    moved = text.num_layers * tokens * layer.traffic * size * (linear + reference)
    moved += 8 * text.num_layers * pairs * text.num_heads * (attention + reference)
    moved += 8 * answers * (run + 1) * text.vocab_size * (2 + reference)
    weights = kernel_bytes(plan) / tensor * turns * (linear + reference)
    images = config.train.batch_size * passes
    found = [Phase("update", images * flops / chips, images * moved / chips + weights)]
    if labels:
        found.insert(0, _vision(plan))
    return found


def kernel_bytes(plan: Abstract, kind: str = "param_dtype") -> int:
    """Bytes of the decoder's linear layers and its head, of the whole model.

    Args:
      kind: "int8" for those of a copy in int8.
    """
    text = plan.run.model_config.text
    layers = {
        name: jax.eval_shape(int8.quantize, kernel)
        if kind == "int8" and name in LINEARS and not isinstance(kernel, qwix.QArray)
        else kernel
        for name, kernel in nnx.as_pure(plan.run.base["decoder"]["layers"]).items()
    }
    total = sum(math.prod(x.shape) * jnp.dtype(x.dtype).itemsize for x in jax.tree.leaves(layers))
    head = text.hidden_size * text.vocab_size
    return total + head * jnp.dtype(plan.run.config.model.param_dtype).itemsize
