"""All that training changes."""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
from flax import nnx


@flax.struct.dataclass
class TrainState:
    """All that training changes.

    Attributes:
      step: int32, updates that were asked for.
      lora: `nnx.State` of the adapters, float32.
      opt_state: of the optimizer.
      skipped: int32, updates in a row that were left out because the gradient was not finite.
    """

    step: jax.Array
    lora: Any
    opt_state: Any
    skipped: jax.Array


def init_state(lora: nnx.State, optimizer: optax.GradientTransformation) -> TrainState:
    """The state before the first update; a copy of the adapters, so that it may be donated."""
    lora = jax.tree.map(jnp.copy, lora)
    # Two zeros: one buffer cannot be donated twice.
    step, skipped = jnp.zeros((), jnp.int32), jnp.zeros((), jnp.int32)
    return TrainState(step=step, lora=lora, opt_state=optimizer.init(lora), skipped=skipped)
