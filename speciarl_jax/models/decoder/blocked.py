"""Attention in blocks of queries, for CPUs: the scores of a block stay in the processor's cache.

Blocks run one after the other, and the backward pass computes their scores again, so that no array
of scores is ever in memory. Rows of fewer than `LONG` tokens gain nothing; `attention` computes
them whole.
"""

import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from einops import rearrange

from speciarl_jax.models.decoder import attention
from speciarl_jax.runtime import activation_sharding

LONG = 256
_ROWS = 128  # of a block's products, about
_PARTS = 4  # of a causal row; the queries of a part are compared with no key behind it
_QUERIES, _KEYS = ("batch", None, "heads", None), ("batch", None, "kv_heads", None)
# [rows] positions of queries -> which keys they see, bool [rows, C].
Seen = Callable[[jax.Array], jax.Array]


def causal(q_BSHK, k_BSGK, v_BSGK, mask_BS, kind: str) -> jax.Array:
    """Computes `attention.causal`."""
    if q_BSHK.shape[1] < LONG:
        return attention.causal(q_BSHK, k_BSGK, v_BSGK, mask_BS)
    arrays, axes = (q_BSHK, k_BSGK, v_BSGK, mask_BS), (_QUERIES, _KEYS, _KEYS, ("batch", None))
    return activation_sharding.on_each_device(_causal, arrays, axes, _QUERIES)


def full(q_BSHK, k_BSGK, v_BSGK, segment_BS, kind: str) -> jax.Array:
    """Computes `attention.full`."""
    if q_BSHK.shape[1] < LONG:
        return attention.full(q_BSHK, k_BSGK, v_BSGK, segment_BS)
    arrays, axes = (q_BSHK, k_BSGK, v_BSGK, segment_BS), (_QUERIES, _KEYS, _KEYS, ("batch", None))
    return activation_sharding.on_each_device(_full, arrays, axes, _QUERIES)


def shared(q_BSHK, k_BSGK, v_BSGK, mask_BP, answers: int, kind: str) -> jax.Array:
    """Computes `attention.shared`; T is not 0."""
    prompt, rows = mask_BP.shape[1], q_BSHK.shape[1]
    if prompt + (rows - prompt) // answers < LONG:
        return attention.shared(q_BSHK, k_BSGK, v_BSGK, mask_BP, answers)
    attend = functools.partial(_shared, answers=answers)
    arrays, axes = (q_BSHK, k_BSGK, v_BSGK, mask_BP), (_QUERIES, _KEYS, _KEYS, ("batch", None))
    return activation_sharding.on_each_device(attend, arrays, axes, _QUERIES)


def _causal(q_BSHK, k_BSGK, v_BSGK, mask_BS):
    return _each_head(_causal_row, (q_BSHK, k_BSGK, v_BSGK), mask_BS)


def _causal_row(q_SRK, k_SK, v_SK, mask_S):
    length = len(mask_S)
    bounds = [length * i // _PARTS for i in range(_PARTS + 1)]

    def part(begin, end):
        def seen(rows):
            return (jnp.arange(end) <= begin + rows[:, None]) & mask_S[:end]

        return _blocks(q_SRK[begin:end], [k_SK[:end]], [v_SK[:end]], seen)

    return jnp.concatenate([part(*pair) for pair in zip(bounds[:-1], bounds[1:], strict=True)])


def _full(q_BSHK, k_BSGK, v_BSGK, segment_BS):
    def row(q_SRK, k_SK, v_SK, segment_S):
        def seen(rows):
            return jnp.take(segment_S, rows, mode="clip")[:, None] == segment_S

        return _blocks(q_SRK, [k_SK], [v_SK], seen)

    return _each_head(row, (q_BSHK, k_BSGK, v_BSGK), segment_BS)


def _shared(q_BSHK, k_BSGK, v_BSGK, mask_BP, *, answers):
    prompt = mask_BP.shape[1]
    length = (q_BSHK.shape[1] - prompt) // answers

    def row(q_SRK, k_SK, v_SK, mask_P):
        first_k, first_v = k_SK[:prompt], v_SK[:prompt]

        def seen(rows):
            before = jnp.broadcast_to(mask_P, (len(rows), prompt))
            return jnp.concatenate([before, jnp.arange(length) <= rows[:, None]], axis=1)

        def completion(arrays):
            q_TRK, k_TK, v_TK = arrays
            return _blocks(q_TRK, [first_k, k_TK], [first_v, v_TK], seen)

        own = (x[prompt:].reshape(answers, length, *x.shape[1:]) for x in (q_SRK, k_SK, v_SK))
        own = jax.lax.map(completion, tuple(own)).reshape(answers * length, *q_SRK.shape[1:])
        first = _causal_row(q_SRK[:prompt], first_k, first_v, mask_P)
        return jnp.concatenate([first, own])

    return _each_head(row, (q_BSHK, k_BSGK, v_BSGK), mask_BP)


def _each_head(row: Callable, qkv: Sequence[jax.Array], extra_BX: jax.Array) -> jax.Array:
    """Runs `row(q_SRK, k_SK, v_SK, extra_X)` for each head of the keys in each row of the batch."""
    q_BSHK, k_BSGK, v_BSGK = qkv
    batch, heads = len(q_BSHK), k_BSGK.shape[2]
    q = rearrange(q_BSHK * q_BSHK.shape[-1] ** -0.5, "b s (g r) k -> (b g) s r k", g=heads)
    k, v = (rearrange(x, "b s g k -> (b g) s k") for x in (k_BSGK, v_BSGK))
    out = jax.lax.map(lambda x: row(*x), (q, k, v, jnp.repeat(extra_BX, heads, axis=0)))
    return rearrange(out, "(b g) s r k -> b s (g r) k", b=batch)


def _blocks(
    q_SRK: jax.Array, k_CK: Sequence[jax.Array], v_CK: Sequence[jax.Array], seen: Seen
) -> jax.Array:
    """Attends to keys and values, given in parts, with a block of queries after the other."""
    length, queries, size = q_SRK.shape
    count = -(-length * queries // _ROWS)
    tokens = -(-length // count)
    blocks = jnp.pad(q_SRK, [(0, count * tokens - length), (0, 0), (0, 0)])
    blocks = blocks.reshape(count, tokens * queries, size)

    @jax.checkpoint
    def block(arrays):
        begin, q = arrays
        scores = jnp.einsum(
            "qk,ck->qc", q, jnp.concatenate(k_CK), preferred_element_type=jnp.float32
        )
        seen_here = jnp.repeat(seen(begin + jnp.arange(tokens)), queries, axis=0)
        scores = jnp.where(seen_here, scores, attention.MASKED)
        # The maximum only keeps the exponentials in range; its gradient cancels.
        weights = jnp.exp(scores - jax.lax.stop_gradient(scores.max(-1, keepdims=True)))
        out = jnp.matmul(
            weights.astype(q.dtype), jnp.concatenate(v_CK), preferred_element_type=jnp.float32
        )
        return (out / weights.sum(-1, keepdims=True)).astype(q.dtype)

    out = jax.lax.map(block, (tokens * jnp.arange(count), blocks))
    return out.reshape(count * tokens, queries, size)[:length]
