"""The norm of decoder and vision encoder."""

import jax
import jax.numpy as jnp


def rms_norm(x: jax.Array, scale: jax.Array, epsilon: float) -> jax.Array:
    """Computes the root-mean-square norm over the last axis, in float32 (arXiv 1910.07467)."""
    x32 = x.astype(jnp.float32)
    x32 = x32 * jax.lax.rsqrt(jnp.mean(x32**2, axis=-1, keepdims=True) + epsilon)
    return scale.astype(x.dtype) * x32.astype(x.dtype)
