"""Attention of cuDNN, for GPUs: no array of scores is ever in memory.

All heads share one mask [B, 1, S, S]. A row of a prompt and N completions is one call, which
computes products between different completions for nothing: for Qwen2.5-VL 7B with 1,260 tokens a
row they are less than 4% of the row's FLOPs.
"""

import jax
import jax.numpy as jnp

from speciarl_jax.models.decoder import attention
from speciarl_jax.runtime import activation_sharding

# Values of `kind`: cuDNN, and the same calls by XLA for tests and machines without GPU.
_IMPLEMENTATIONS = {"cudnn": "cudnn", "cudnn_by_xla": "xla"}


def causal(q_BSHK, k_BSGK, v_BSGK, mask_BS, kind: str) -> jax.Array:
    """Computes `attention.causal`."""
    order_S = jnp.arange(q_BSHK.shape[1])
    mask_BSS = mask_BS[:, None, :] & (order_S <= order_S[:, None])
    return _attend(q_BSHK, k_BSGK, v_BSGK, mask_BSS, kind)


def full(q_BSHK, k_BSGK, v_BSGK, segment_BS, kind: str) -> jax.Array:
    """Computes attention [B, S, H, K] in which a token sees its whole segment, int32."""
    return _attend(q_BSHK, k_BSGK, v_BSGK, segment_BS[:, :, None] == segment_BS[:, None, :], kind)


def shared(q_BSHK, k_BSGK, v_BSGK, mask_BP, answers: int, kind: str) -> jax.Array:
    """Computes `attention.shared`: rows `[prompt | completion 1 ... completion N]`, S = P + N T."""
    prompt, tokens = mask_BP.shape[1], q_BSHK.shape[1]
    order_S = jnp.arange(tokens)
    seen_SS = attention.seen_in_shared_row(order_S, order_S, prompt, (tokens - prompt) // answers)
    valid_BS = jnp.pad(mask_BP, [(0, 0), (0, tokens - prompt)], constant_values=True)
    return _attend(q_BSHK, k_BSGK, v_BSGK, seen_SS & valid_BS[:, None, :], kind)


def _attend(q_BSHK, k_BSGK, v_BSGK, mask_BSS, kind: str) -> jax.Array:
    size = q_BSHK.shape[1]
    after = size % 2  # with a mask, cuDNN's gradient wants even lengths
    q, k, v = (jnp.pad(x, [(0, 0), (0, after), (0, 0), (0, 0)]) for x in (q_BSHK, k_BSGK, v_BSGK))
    mask = jnp.pad(mask_BSS, [(0, 0), (0, after), (0, after)])[:, None]

    def on_one_device(q, k, v, mask):
        return jax.nn.dot_product_attention(
            q, k, v, mask=mask, implementation=_IMPLEMENTATIONS[kind]
        )

    queries, keys = ("batch", None, "heads", None), ("batch", None, "kv_heads", None)
    out = activation_sharding.on_each_device(
        on_one_device, (q, k, v, mask), (queries, keys, keys, ("batch", None, None, None)), queries
    )
    return out[:, :size]
