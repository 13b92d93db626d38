"""Splits a batch into parts and merges the parts again."""

import jax
import jax.numpy as jnp


def split_strided(x: jax.Array, parts: int) -> jax.Array:
    """[B, ...] to [parts, B / parts, ...]; part i takes every `parts`-th image.

    Strided, so that a batch axis that is sharded stays sharded in every part.
    """
    return jnp.swapaxes(x.reshape(x.shape[0] // parts, parts, *x.shape[1:]), 0, 1)


def merge_strided(x: jax.Array) -> jax.Array:
    """[parts, B / parts, ...] to [B, ...]: undoes `split_strided`."""
    return jnp.swapaxes(x, 0, 1).reshape(-1, *x.shape[2:])
