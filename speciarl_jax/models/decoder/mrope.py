"""Multimodal rotary positions (M-RoPE, arXiv 2409.12191, section 2.1)."""

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange

from speciarl_jax.models.decoder.text_config import TextConfig


def rotary(positions: jax.Array, config: TextConfig) -> tuple[jax.Array, jax.Array]:
    """Computes cosine and sine of the rotary angles, float32 [..., K] each.

    `config.mrope_section` says how many frequencies each of the three axes has. They are runs of
    neighbours, or with `config.mrope_interleaved` they take turns until an axis has all of its own;
    the rest are temporal.

    Args:
      positions: int32 [3, ...], temporal, height and width position.
    """
    half = config.head_dim // 2
    frequency = config.rope_theta ** (-jnp.arange(half, dtype=jnp.float32) / half)
    chosen = jnp.moveaxis(positions, 0, -1)[..., _axes(config)].astype(jnp.float32)
    angle = chosen * frequency
    angle = jnp.concatenate([angle, angle], axis=-1)
    return jnp.cos(angle), jnp.sin(angle)


def rotary_2d(hw: jax.Array, head_dim: int, theta: float) -> tuple[jax.Array, jax.Array]:
    """Computes cosine and sine of rotary angles on two axes, as vision encoders have them.

    Args:
      hw: int32 [..., 2], row and column.
      head_dim: K, a multiple of 4; each axis has half of the frequencies.
      theta: base of the frequencies.

    Returns:
      float32 [..., K] each.
    """
    half = head_dim // 2
    frequency = 1.0 / theta ** (jnp.arange(0, half, 2, dtype=jnp.float32) / half)
    angle = hw.astype(jnp.float32)[..., None] * frequency
    angle = rearrange(angle, "... two f -> ... (two f)")
    angle = jnp.concatenate([angle, angle], axis=-1)
    return jnp.cos(angle), jnp.sin(angle)


def rotate(x: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
    """Rotates heads `x` [..., heads, K] by angles [..., K], computed in float32."""
    x32 = x.astype(jnp.float32)
    low, high = jnp.split(x32, 2, axis=-1)
    turned = jnp.concatenate([-high, low], axis=-1)
    return (x32 * cos[..., None, :] + turned * sin[..., None, :]).astype(x.dtype)


def _axes(config: TextConfig) -> np.ndarray:
    """Returns which axis each frequency turns with: 0 temporal, 1 height, 2 width."""
    if not config.mrope_interleaved:
        return np.repeat(np.arange(3), config.mrope_section)
    axes = np.zeros(config.head_dim // 2, int)
    for axis in (1, 2):
        axes[axis : 3 * config.mrope_section[axis] : 3] = axis
    return axes
