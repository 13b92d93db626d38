"""Attention by XLA, scores and all: over one sequence, or over a shared prefix and a suffix."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import qwix
from einops import rearrange

MASKED = -1e30  # score of a key that a query does not see


def causal(q_BSHK, k_BSGK, v_BSGK, mask_BS) -> jax.Array:
    """Computes causal grouped-query attention [B, S, H, K]; where `mask_BS` is false is padding."""
    length = q_BSHK.shape[1]
    order_SS = jnp.tril(jnp.ones((length, length), bool))
    mask = order_SS[None, None] & mask_BS[:, None, None, :]
    return jax.nn.dot_product_attention(q_BSHK, k_BSGK, v_BSGK, mask=mask)


def shared(q_BSHK, k_BSGK, v_BSGK, mask_BP, answers: int) -> jax.Array:
    """Computes causal attention of completions to their prompt and to themselves.

    Args:
      q_BSHK: rotated queries of rows `[prompt | completion 1 ... completion N]`, S = P + N T.
      mask_BP: bool, false at the prompt's padding.
      answers: N, completions; T may be 0.

    Returns:
      [B, S, H, K] in the dtype of the queries.
    """
    prompt = mask_BP.shape[1]
    length = (q_BSHK.shape[1] - prompt) // answers

    def split(x):
        return x[:, :prompt], rearrange(x[:, prompt:], "b (n t) h k -> b n t h k", n=answers)

    (q0, q1), (k0, k1), (v0, v1) = split(q_BSHK), split(k_BSGK), split(v_BSGK)
    first = causal(q0, k0, v0, mask_BP)
    if length:
        order_TT = jnp.tril(jnp.ones((length, length), bool))
        q1 = shared_prefix(q1, k0, v0, mask_BP, k1, v1, order_TT)
    own = rearrange(q1, "b n t h k -> b (n t) h k")
    return jnp.concatenate([first, own], axis=1)


def seen_in_shared_row(rows, columns, prompt: int, length: int):
    """Returns which columns of a row `[prompt | completion 1 ... N]` a token sees, bool [R, C].

    Attention is causal, no completion sees another, and padding is not looked at.

    Args:
      rows: [R] positions in the row, NumPy or JAX.
      columns: [C] likewise.
      prompt: P, tokens.
      length: T, tokens of each completion.
    """
    # Completions are numbered 0, 1, ..., the parts of the prompt -1, -2, ...
    mine, theirs = ((positions - prompt) // length for positions in (rows, columns))
    same = (mine[:, None] == theirs) | (columns < prompt)
    return same & (columns <= rows[:, None])


def shared_prefix(
    q_BNTHK: jax.Array,
    prefix_k_BPGK: jax.Array,
    prefix_v_BPGK: jax.Array,
    prefix_mask_BP: jax.Array,
    suffix_k_BNSGK: jax.Array,
    suffix_v_BNSGK: jax.Array,
    suffix_mask_TS: jax.Array,
) -> jax.Array:
    """Computes attention of N completions to one prompt and each to itself, in one exact softmax.

    The two blocks of scores share their maximum and their sum (the log-sum-exp merge of cascade
    attention). So the prompt's keys are not repeated N times, and no square over all completions
    is built.

    Args:
      q_BNTHK: rotated queries.
      prefix_mask_BP: bool.
      suffix_mask_TS: bool, which of its own columns a query sees; at least one. [B, 1, 1, N, T, S]
        where that differs between completions.

    Returns:
      [B, N, T, H, K] in the dtype of the queries.
    """
    groups = prefix_k_BPGK.shape[2]
    scale = q_BNTHK.shape[-1] ** -0.5
    q = rearrange(q_BNTHK * scale, "b n t (g r) k -> b g r n t k", g=groups)
    to_prefix = jnp.einsum(
        "bgrntk,bpgk->bgrntp", q, prefix_k_BPGK, preferred_element_type=jnp.float32
    )
    to_suffix = jnp.einsum(
        "bgrntk,bnsgk->bgrnts", q, suffix_k_BNSGK, preferred_element_type=jnp.float32
    )
    to_prefix = jnp.where(prefix_mask_BP[:, None, None, None, None, :], to_prefix, MASKED)
    to_suffix = jnp.where(suffix_mask_TS, to_suffix, MASKED)
    # The maximum only keeps the exponentials in range; its gradient cancels.
    highest = jax.lax.stop_gradient(
        jnp.maximum(to_prefix.max(-1, keepdims=True), to_suffix.max(-1, keepdims=True))
    )
    to_prefix, to_suffix = jnp.exp(to_prefix - highest), jnp.exp(to_suffix - highest)
    total = to_prefix.sum(-1) + to_suffix.sum(-1)
    dtype = q_BNTHK.dtype
    out = jnp.einsum(
        "bgrntp,bpgk->bgrntk",
        to_prefix.astype(dtype),
        prefix_v_BPGK,
        preferred_element_type=jnp.float32,
    )
    out += jnp.einsum(
        "bgrnts,bnsgk->bgrntk",
        to_suffix.astype(dtype),
        suffix_v_BNSGK,
        preferred_element_type=jnp.float32,
    )
    return rearrange((out / total[..., None]).astype(dtype), "b g r n t k -> b n t (g r) k")


def decode(
    q_BNHK: jax.Array,
    prefix_k_BGKP: Any,
    prefix_v_BGPK: Any,
    prefix_mask_BP: jax.Array,
    suffix_k_BNGKT: Any,
    suffix_v_BNGTK: Any,
    step: jax.Array,
    layer: jax.Array | None = None,
) -> jax.Array:
    """Computes `shared_prefix` for one query of each completion, against the layout of `cache`.

    Keys and values may be in int8. Scores and weights are multiplied by their scales, so that no
    cache is ever there in a wider dtype than it is kept in.

    Only the first columns of the completions' caches are read, as many as the next of
    `columns_to_read`: a completion may be long, and most are short.

    Args:
      q_BNHK: rotated queries of token `step`.
      prefix_mask_BP: bool.
      suffix_k_BNGKT: keys of each completion; columns after `step` are not seen.
      step: int32 scalar.
      layer: int32 scalar, which layer to read if the completions' caches have an axis of layers.

    Returns:
      [B, N, H, K] in the dtype of the queries.
    """
    lengths = columns_to_read(suffix_v_BNGTK.shape[-2])

    def first_columns(cache, axis, length):
        # Cut inside the branch: an argument of a branch would be copied whole.
        def cut(x):
            if layer is None:
                return jax.lax.slice_in_dim(x, 0, length, axis=axis)
            sizes = [1, *x.shape[1:]]
            sizes[axis] = length
            return jax.lax.dynamic_slice(x, [layer] + [0] * (x.ndim - 1), sizes)[0]

        return jax.tree.map(cut, cache)

    def branch(length):
        def attend(suffix_k, suffix_v):
            return _decode(
                q_BNHK,
                prefix_k_BGKP,
                prefix_v_BGPK,
                prefix_mask_BP,
                first_columns(suffix_k, suffix_k.ndim - 1, length),
                first_columns(suffix_v, suffix_v.ndim - 2, length),
                step,
            )

        return attend

    chosen = jnp.sum(step >= jnp.array(lengths[:-1], jnp.int32))
    branches = [branch(length) for length in lengths]
    return jax.lax.switch(chosen, branches, suffix_k_BNGKT, suffix_v_BNGTK)


def columns_to_read(length: int, shortest: int = 32) -> list[int]:
    """Halves `length` repeatedly, down to no less than `shortest`; the shortest comes first."""
    lengths = [length]
    while lengths[0] >= 2 * shortest:
        lengths.insert(0, -(-lengths[0] // 2))
    return lengths


def _decode(
    q_BNHK, prefix_k_BGKP, prefix_v_BGPK, prefix_mask_BP, suffix_k_BNGKT, suffix_v_BNGTK, step
):
    dtype, answers, groups = q_BNHK.dtype, q_BNHK.shape[1], prefix_k_BGKP.shape[1]
    q = rearrange(q_BNHK * q_BNHK.shape[-1] ** -0.5, "b n (g r) k -> b n g r k", g=groups)
    # All completions are rows of one product with the prompt's keys.
    to_prefix = _times_keys(rearrange(q, "b n g r k -> b g (n r) k"), prefix_k_BGKP)
    to_prefix = rearrange(to_prefix, "b g (n r) p -> b n g r p", n=answers)
    to_suffix = _times_keys(q, suffix_k_BNGKT)
    to_prefix = jnp.where(prefix_mask_BP[:, None, None, None], to_prefix, MASKED)
    to_suffix = jnp.where(jnp.arange(to_suffix.shape[-1]) <= step, to_suffix, MASKED)
    highest = jnp.maximum(to_prefix.max(-1, keepdims=True), to_suffix.max(-1, keepdims=True))
    to_prefix, to_suffix = jnp.exp(to_prefix - highest), jnp.exp(to_suffix - highest)
    total = to_prefix.sum(-1) + to_suffix.sum(-1)
    to_prefix = rearrange(to_prefix, "b n g r p -> b g (n r) p")
    out = _times_values(to_prefix, prefix_v_BGPK, dtype)
    out = rearrange(out, "b g (n r) k -> b n g r k", n=answers)
    out += _times_values(to_suffix, suffix_v_BNGTK, dtype)
    return rearrange((out / total[..., None]).astype(dtype), "b n g r k -> b n (g r) k")


_dot = functools.partial(jnp.matmul, preferred_element_type=jnp.float32)


def _times_keys(q, k):
    """Computes float32 scores [..., R, C] of queries [..., R, K] and keys [..., K, C]."""
    if isinstance(k, qwix.QArray):
        return _dot(q, k.qvalue.astype(q.dtype)) * k.scale
    return _dot(q, k)


def _times_values(weights, v, dtype):
    """Computes float32 sums [..., R, K] of values [..., C, K] by weights [..., R, C]."""
    if isinstance(v, qwix.QArray):
        weights, v = weights * jnp.swapaxes(v.scale, -2, -1), v.qvalue.astype(dtype)
    return _dot(weights.astype(dtype), v)
