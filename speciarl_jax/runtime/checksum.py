"""Checksums of arrays, and of the JSON that is written beside them."""

import hashlib
import json
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


@jax.jit
def of_arrays(state: Any) -> list[jax.Array]:
    """Returns a uint32 for each array: the sum of its bits, each element times its own odd number.

    One changed element always changes it. No mesh does, for whole numbers add up alike in any
    order. Orbax notices damage to the structure of a checkpoint, and none to its numbers.
    """

    def one(x):
        x = x.astype(jnp.uint8) if x.dtype == bool else x
        words = jax.lax.bitcast_convert_type(x, f"uint{8 * x.dtype.itemsize}").astype(jnp.uint32)
        place = jnp.zeros(x.shape, jnp.uint32)
        for axis in range(x.ndim):
            stride = math.prod(x.shape[axis + 1 :]) % 2**32
            place += jax.lax.broadcasted_iota(jnp.uint32, x.shape, axis) * np.uint32(stride)
        return jnp.sum(words * (2 * place + 1), dtype=jnp.uint32)

    return [one(jnp.asarray(x)) for x in jax.tree.leaves(state)]


def digest(state: Any, *parts: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the checksums that `Checkpoints.restore` compares: of arrays, and of JSON."""
    return {"state": [int(x) for x in of_arrays(state)], "json": text_digest(*parts)}


def text_digest(*parts: Mapping[str, Any]) -> str:
    """Returns the SHA-256 of JSON-able values."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
