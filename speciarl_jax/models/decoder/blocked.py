"""Attention in blocks of queries, for CPUs: the scores of a block stay in the processor's cache.

Blocks run one after the other, and the backward pass computes their scores again, so that no array
of scores is ever in memory.
"""

import functools
import itertools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from einops import rearrange

from speciarl_jax.models.decoder import attention
from speciarl_jax.runtime import activation_sharding

LONG = 512  # tokens of a row; shorter ones gain nothing
_ROWS = 384  # of a block's products, about
_PARTS = 4  # of a causal row; the queries of a part are compared with no key behind it
_QUERIES, _KEYS = ("batch", None, "heads", None), ("batch", None, "kv_heads", None)
_AXES = (_QUERIES, _KEYS, _KEYS, ("batch", None))


def causal(q_BSHK, k_BSGK, v_BSGK, mask_BS, kind: str) -> jax.Array:
    """Computes `attention.causal`."""
    arrays = (q_BSHK, k_BSGK, v_BSGK, mask_BS)
    return activation_sharding.on_each_device(_causal, arrays, _AXES, _QUERIES)


def full(q_BSHK, k_BSGK, v_BSGK, segment_BS, kind: str) -> jax.Array:
    """Computes attention [B, S, H, K] in which a token sees its whole segment, int32."""
    arrays = (q_BSHK, k_BSGK, v_BSGK, segment_BS)
    return activation_sharding.on_each_device(_full, arrays, _AXES, _QUERIES)


def shared(q_BSHK, k_BSGK, v_BSGK, mask_BP, answers: int, kind: str) -> jax.Array:
    """Computes `attention.shared`; T is not 0."""
    arrays = (q_BSHK, k_BSGK, v_BSGK, mask_BP)
    attend = functools.partial(_shared, answers=answers)
    return activation_sharding.on_each_device(attend, arrays, _AXES, _QUERIES)


def _causal(q_BSHK, k_BSGK, v_BSGK, mask_BS):
    return _each_head(_causal_row, q_BSHK, k_BSGK, v_BSGK, _bias(mask_BS))


def _causal_row(q_SRK, k_SK, v_SK, bias_S):
    length, queries = q_SRK.shape[:2]
    tokens = _tokens(length, queries)
    blocks = _cut(q_SRK, tokens)
    # For a block that begins at token i, the columns from `length - i` on.
    order = _bias(jnp.arange(2 * length) <= length + jnp.arange(tokens)[:, None])

    def part(first, last):
        end = min(last * tokens, length)

        def block(arrays):
            begin, q_TRK = arrays
            later = jax.lax.dynamic_slice_in_dim(order, length - begin, end, axis=1)
            return _attend(q_TRK, [k_SK[:end]], [v_SK[:end]], later + bias_S[:end])

        begins = tokens * jnp.arange(first, last)
        return jax.lax.map(jax.checkpoint(block), (begins, blocks[first:last]))

    bounds = [len(blocks) * i // _PARTS for i in range(_PARTS + 1)]
    parts = [part(*pair) for pair in itertools.pairwise(bounds) if pair[0] < pair[1]]
    return _joined(jnp.concatenate(parts), length)


def _shared(q_BSHK, k_BSGK, v_BSGK, mask_BP, *, answers):
    prompt = mask_BP.shape[1]
    length = (q_BSHK.shape[1] - prompt) // answers
    tokens = _tokens(length, q_BSHK.shape[2] // k_BSGK.shape[2])
    order = _cut(_bias(jnp.arange(length) <= jnp.arange(length)[:, None]), tokens)

    def row(q_SRK, k_SK, v_SK, bias_P):
        k_PK, v_PK = k_SK[:prompt], v_SK[:prompt]
        before = jnp.broadcast_to(bias_P, (*order.shape[:2], prompt))
        bias = jnp.concatenate([before, order], axis=2)

        def completion(arrays):
            q_TRK, k_TK, v_TK = arrays

            def block(arrays):
                return _attend(arrays[0], [k_PK, k_TK], [v_PK, v_TK], arrays[1])

            out = jax.lax.map(jax.checkpoint(block), (_cut(q_TRK, tokens), bias))
            return _joined(out, length)

        own = [x[prompt:].reshape(answers, length, *x.shape[1:]) for x in (q_SRK, k_SK, v_SK)]
        own = jax.lax.map(completion, tuple(own))
        first = _causal_row(q_SRK[:prompt], k_PK, v_PK, bias_P)
        return jnp.concatenate([first, own.reshape(-1, *own.shape[2:])])

    return _each_head(row, q_BSHK, k_BSGK, v_BSGK, _bias(mask_BP))


def _full(q_BSHK, k_BSGK, v_BSGK, segment_BS):
    length, groups = k_BSGK.shape[1:3]
    tokens = _tokens(length, q_BSHK.shape[2] // groups)

    def row(arrays):
        q_SGRK, k_GSK, v_GSK, segment_S = arrays

        def block(arrays):
            q_TGRK, mine_T = arrays
            bias = _bias(mine_T[:, None] == segment_S)  # the same for all heads
            head = jax.checkpoint(lambda arrays: _attend(arrays[0], arrays[1:2], arrays[2:], bias))
            out = jax.lax.map(head, (jnp.moveaxis(q_TGRK, 1, 0), k_GSK, v_GSK))
            return jnp.moveaxis(out, 0, 1)

        return _joined(jax.lax.map(block, (_cut(q_SGRK, tokens), _cut(segment_S, tokens))), length)

    q = rearrange(_scaled(q_BSHK), "b s (g r) k -> b s g r k", g=groups)
    k, v = (rearrange(x, "b s g k -> b g s k") for x in (k_BSGK, v_BSGK))
    return rearrange(jax.lax.map(row, (q, k, v, segment_BS)), "b s g r k -> b s (g r) k")


def _each_head(row: Callable, q_BSHK, k_BSGK, v_BSGK, bias_BX) -> jax.Array:
    """Runs `row(q_SRK, k_SK, v_SK, bias_X)` for each head of the keys in each row of the batch."""
    batch, _, groups, _ = k_BSGK.shape
    q = rearrange(_scaled(q_BSHK), "b s (g r) k -> (b g) s r k", g=groups)
    k, v = (rearrange(x, "b s g k -> (b g) s k") for x in (k_BSGK, v_BSGK))
    bias = jnp.repeat(bias_BX, groups, axis=0)
    out = jax.lax.map(lambda arrays: row(*arrays), (q, k, v, bias))
    return rearrange(out, "(b g) s r k -> b s (g r) k", b=batch)


def _attend(
    q_TRK: jax.Array, keys: Sequence[jax.Array], values: Sequence[jax.Array], bias_TC: jax.Array
) -> jax.Array:
    """Attends from a block of queries to keys and values, which are given in parts."""
    dot = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)
    # A sum is several times as fast as a choice by a mask.
    scores = dot("trk,ck->trc", q_TRK, jnp.concatenate(keys)) + bias_TC[:, None]
    # The maximum only keeps the exponentials in range; its gradient cancels.
    weights = jnp.exp(scores - jax.lax.stop_gradient(scores.max(-1, keepdims=True)))
    out = dot("trc,ck->trk", weights.astype(q_TRK.dtype), jnp.concatenate(values))
    return (out / weights.sum(-1, keepdims=True)).astype(q_TRK.dtype)


def _scaled(q: jax.Array) -> jax.Array:
    return q * q.shape[-1] ** -0.5


def _bias(seen: jax.Array) -> jax.Array:
    """Returns what is added to scores, float32: nothing where a key is seen."""
    return jnp.where(seen, 0.0, attention.MASKED)


def _tokens(length: int, queries: int) -> int:
    """Returns the tokens of a block, each with so many queries; blocks are about equally full."""
    return -(-length // -(-length * queries // _ROWS))


def _cut(x_SX: jax.Array, tokens: int) -> jax.Array:
    """Cuts into blocks [count, tokens, ...]; the last is filled up with zeros."""
    after = -len(x_SX) % tokens
    padded = jnp.pad(x_SX, [(0, after)] + [(0, 0)] * (x_SX.ndim - 1))
    return padded.reshape(-1, tokens, *x_SX.shape[1:])


def _joined(blocks: jax.Array, length: int) -> jax.Array:
    """Reverses `_cut`."""
    return blocks.reshape(-1, *blocks.shape[2:])[:length]
