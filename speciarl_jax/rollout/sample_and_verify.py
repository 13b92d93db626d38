"""Samples groups of completions inside the program; pure functions."""

import functools
from collections.abc import Callable
from typing import Any

import jax
from flax import nnx

from speciarl_jax.models.prompt_batch import PromptBatch
from speciarl_jax.rollout.generate import generate
from speciarl_jax.rollout.types import Rollout
from speciarl_jax.runtime.batching import merge_strided, split_strided


def sample(
    lora: nnx.State,
    base: nnx.State,
    batch: PromptBatch,
    key: jax.Array,
    temperature: jax.Array,
    top_p: jax.Array,
    *,
    graphdef: nnx.GraphDef,
    chunks: Callable[[int, int], int] | None = None,
    **options: Any,
) -> tuple[jax.Array, Rollout]:
    """Runs the vision encoder once an image and samples N answers about each.

    Args:
      temperature: 0 is greedy.
      top_p: 1 for the whole distribution.
      graphdef: joins `lora` and `base` into the policy.
      chunks: (B, P) -> parts that are seen and sampled one after the other, so that their caches
        fit into memory (`rollout.memory`); None for one. No key depends on their number.
      **options: of `generate`.

    Returns:
      Features [B, M, D] and the answers.
    """
    policy = nnx.merge(graphdef, lora, base)
    answer = functools.partial(
        generate, policy, key=key, temperature=temperature, top_p=top_p, **options
    )
    parts = chunks(*batch.tokens_BP.shape) if chunks is not None else 1
    if parts == 1:
        features_BMD = encode(policy, batch)
        return features_BMD, answer(batch, features_BMD)
    weights = policy.decoder.decode_weights(
        use_lora=True,
        merge_lora=options.get("merge_lora", False),
        kind=options.get("decode_weights", "param_dtype"),
    )

    def answer_part(part):
        features_BMD = encode(policy, part)
        return features_BMD, answer(part, features_BMD, weights=weights)

    stacked = jax.tree.map(lambda x: split_strided(x, parts), batch)
    return jax.tree.map(merge_strided, jax.lax.map(answer_part, stacked))


def encode(policy: Any, batch: PromptBatch) -> jax.Array:
    """Features [B, M, D] of the images: those that the batch brings, or the vision encoder's."""
    if batch.features_BMD is not None:
        return batch.features_BMD
    return policy.encode_images(batch.patches_BSC, batch.layout)
