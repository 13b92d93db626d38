"""Modules with random weights that no compiler draws: each shape would be a program of its own."""

import jax.numpy as jnp
import numpy as np
from flax import nnx


def drawn(make):
    """`make()`, its matrices drawn by numpy with a deviation of 1 over the root of their inputs.

    Scales of norms are 1, and biases 0, as in a new module.
    """
    module, rng = nnx.eval_shape(make), np.random.default_rng(0)
    for path, variable in nnx.to_flat_state(nnx.state(module, nnx.Param)):
        name = str(path[-1])
        if name.endswith("bias"):
            value = np.zeros(variable.shape)
        elif "norm" in name or variable.ndim < 2:
            value = np.ones(variable.shape)
        else:
            value = rng.normal(0, 1 / np.sqrt(variable.shape[-2]), variable.shape)
        variable.set_value(jnp.asarray(value, variable.dtype))
    return module
