"""Splash attention (JAX's Pallas kernel for TPU): no array of scores is ever in memory.

Every head and row is one sequence with segments, in which a token sees its own segment only, and
with a static mask, whose empty blocks are skipped.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernel_lib
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as mask_lib

from speciarl_jax.models.decoder import attention
from speciarl_jax.runtime import activation_sharding

_LANES = 128
_BLOCK = 512


@dataclasses.dataclass(frozen=True)
class SharedPrefixMask(mask_lib.Mask):
    """Mask of rows `[prompt | completion 1 ... completion N]`: no completion sees another."""

    prompt: int  # P, tokens
    answers: int  # N, completions
    length: int  # T, tokens of each completion

    @property
    def shape(self) -> tuple[int, int]:
        size = self.prompt + self.answers * self.length
        return size, size

    def __getitem__(self, index: tuple[slice, slice]) -> np.ndarray:
        rows, columns = (np.arange(n)[part] for n, part in zip(self.shape, index, strict=True))
        return attention.seen_in_shared_row(rows, columns, self.prompt, self.length)


def causal(q_BSHK, k_BSGK, v_BSGK, mask_BS, kind: str) -> jax.Array:
    """Computes `attention.causal`, except that padding sees other padding."""
    return _padded(q_BSHK, k_BSGK, v_BSGK, mask_BS.astype(jnp.int32), mask_lib.CausalMask, kind)


def full(q_BSHK, k_BSGK, v_BSGK, segment_BS, kind: str) -> jax.Array:
    """Computes attention [B, S, H, K] in which a token sees its whole segment, int32."""
    return _padded(q_BSHK, k_BSGK, v_BSGK, segment_BS, mask_lib.FullMask, kind)


def shared(q_BSHK, k_BSGK, v_BSGK, mask_BP, answers: int, kind: str) -> jax.Array:
    """Computes `attention.shared`; T is not 0.

    Args:
      kind: "splash", compiled for TPU, or "splash_interpret", the same step by step anywhere.
    """
    batch, prompt = mask_BP.shape
    length = (q_BSHK.shape[1] - prompt) // answers
    block = _block(min(prompt, length))
    left, right = -prompt % block, -length % block
    sizes = SharedPrefixMask(prompt + left, answers, length + right)

    def spread(x):
        own = rearrange(x[:, prompt:], "b (n t) h k -> b n t h k", n=answers)
        own = jnp.pad(own, [(0, 0), (0, 0), (0, right), (0, 0), (0, 0)])
        first = jnp.pad(x[:, :prompt], [(0, 0), (left, 0), (0, 0), (0, 0)])
        return jnp.concatenate([first, rearrange(own, "b n t h k -> b (n t) h k")], axis=1)

    segment_BS = jnp.concatenate(
        [
            jnp.pad(mask_BP.astype(jnp.int32), [(0, 0), (left, 0)]),
            jnp.ones((batch, answers * sizes.length), jnp.int32),
        ],
        axis=1,
    )
    out = _attend(*map(spread, (q_BSHK, k_BSGK, v_BSGK)), segment_BS, sizes, block, kind)
    own = rearrange(out[:, sizes.prompt :], "b (n t) h k -> b n t h k", n=answers)[:, :, :length]
    own = rearrange(own, "b n t h k -> b (n t) h k")
    return jnp.concatenate([out[:, left : sizes.prompt], own], axis=1)


def _block(size: int) -> int:
    """Returns the side of the blocks: large ones where they do not mean much padding."""
    return _BLOCK if size > _BLOCK // 2 else _LANES


def _padded(q, k, v, segment_BS, make_mask: Any, kind: str) -> jax.Array:
    """Pads sequences at their end with a segment 0 of its own."""
    size = q.shape[1]
    block = _block(size)
    after = -size % block
    q, k, v = (jnp.pad(x, [(0, 0), (0, after), (0, 0), (0, 0)]) for x in (q, k, v))
    segment_BS = jnp.pad(segment_BS, [(0, 0), (0, after)])
    mask = make_mask((size + after, size + after))
    return _attend(q, k, v, segment_BS, mask, block, kind)[:, :size]


def _attend(q_BSHK, k_BSGK, v_BSGK, segment_BS, mask, block: int, kind: str) -> jax.Array:
    sizes = kernel_lib.BlockSizes(
        **dict.fromkeys(
            (
                *("block_q", "block_kv", "block_kv_compute", "block_q_dq", "block_kv_dq"),
                *("block_q_dkv", "block_kv_dkv", "block_kv_dkv_compute"),
            ),
            block,
        )
    )

    def on_one_device(q, k, v, segment_BS):
        kernel = kernel_lib.make_splash_mha(
            mask_lib.MultiHeadMask([mask] * q.shape[1]),
            block_sizes=sizes,
            head_shards=1,
            q_seq_shards=1,
            interpret=kind == "splash_interpret",
        )

        def row(q, k, v, segment):
            return kernel(q, k, v, kernel_lib.SegmentIds(segment, segment))

        return jax.vmap(row)(q, k, v, segment_BS)

    q = rearrange(q_BSHK * q_BSHK.shape[-1] ** -0.5, "b s h k -> b h s k")
    k, v = (rearrange(x, "b s g k -> b g s k") for x in (k_BSGK, v_BSGK))
    queries, keys = ("batch", "heads", None, None), ("batch", "kv_heads", None, None)
    out = activation_sharding.on_each_device(
        on_one_device, (q, k, v, segment_BS), (queries, keys, keys, ("batch", None)), queries
    )
    return rearrange(out, "b h s k -> b s h k").astype(q_BSHK.dtype)
