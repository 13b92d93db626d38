"""Multimodal rotary positions (M-RoPE, arXiv 2409.12191, section 2.1)."""

import jax
import jax.numpy as jnp
import numpy as np

from speciarl_jax.models.qwen2_5_vl.config import TextConfig


def rotary(positions: jax.Array, config: TextConfig) -> tuple[jax.Array, jax.Array]:
    """Computes cosine and sine of the rotary angles, float32 [..., K] each.

    `config.mrope_section` says how many frequencies each of the three axes has.

    Args:
      positions: int32 [3, ...], temporal, height and width position.
    """
    half = config.head_dim // 2
    frequency = config.rope_theta ** (-jnp.arange(half, dtype=jnp.float32) / half)
    axis_of_frequency = np.repeat(np.arange(3), config.mrope_section)
    chosen = jnp.moveaxis(positions, 0, -1)[..., axis_of_frequency].astype(jnp.float32)
    angle = chosen * frequency
    angle = jnp.concatenate([angle, angle], axis=-1)
    return jnp.cos(angle), jnp.sin(angle)


def rotate(x: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
    """Rotates heads `x` [..., heads, K] by angles [..., K], computed in float32."""
    x32 = x.astype(jnp.float32)
    low, high = jnp.split(x32, 2, axis=-1)
    turned = jnp.concatenate([-high, low], axis=-1)
    return (x32 * cos[..., None, :] + turned * sin[..., None, :]).astype(x.dtype)
