"""The state of training: adapters, optimizer, counters."""

import functools
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from flax import nnx

from speciarl_jax.experiment.run import Run
from speciarl_jax.rl import optimizer as optimizer_lib
from speciarl_jax.runtime import sharding


@flax.struct.dataclass
class TrainState:
    """Holds all that training changes."""

    step: jax.Array  # int32, updates that were asked for
    lora: Any  # `nnx.State` of the adapters, float32
    opt_state: Any
    # int32, updates in a row that were left out because the gradient was not finite.
    skipped: jax.Array

    def with_behaviour(self, lora: Any) -> "AheadState":
        """Adds the adapters that the next batch is sampled with."""
        return AheadState(self.step, self.lora, self.opt_state, self.skipped, lora)


@flax.struct.dataclass
class MovingReferenceState(TrainState):
    """Holds what training changes where the reference policy moves (`loss.reference_decay`)."""

    reference: Any  # `nnx.State` of the reference policy's adapters, float32


@flax.struct.dataclass
class AheadState(TrainState):
    """Holds what training changes where batches are sampled ahead (`config.train.ahead`)."""

    behaviour: Any  # `nnx.State` of the adapters that the next batch is sampled with, float32

    def without_behaviour(self) -> TrainState:
        """Returns what an update reads and changes."""
        return TrainState(self.step, self.lora, self.opt_state, self.skipped)


def init_state(
    lora: nnx.State, optimizer: optimizer_lib.Optimizer, *, moving_reference: bool = False
) -> TrainState:
    """Makes the state before the first update; it copies the adapters, so it may be donated.

    Args:
      moving_reference: make a `MovingReferenceState`, whose reference begins as the policy.
    """
    # Copies, and two zeros: one buffer cannot be donated twice.
    state = TrainState(
        step=jnp.zeros((), jnp.int32),
        lora=jax.tree.map(jnp.copy, lora),
        opt_state=optimizer.init(lora),
        skipped=jnp.zeros((), jnp.int32),
    )
    if not moving_reference:
        return state
    return MovingReferenceState(**vars(state), reference=jax.tree.map(jnp.copy, lora))


def abstract_state(
    mesh: jax.sharding.Mesh,
    lora: Any,
    optimizer: optimizer_lib.Optimizer,
    *,
    moving_reference: bool = False,
    ahead: int = 0,
) -> tuple[TrainState, TrainState]:
    """Returns shapes, dtypes and shardings of the state, and the shardings alone.

    Args:
      moving_reference: both are of `MovingReferenceState`.
      ahead: `config.train.ahead`; above 0 both are of `AheadState`.
    """
    init = functools.partial(init_state, optimizer=optimizer, moving_reference=moving_reference)
    shapes = jax.eval_shape(init, lora)
    shapes = shapes.with_behaviour(shapes.lora) if ahead else shapes
    state_sharding = sharding.shardings_of(mesh, shapes)
    return sharding.placed(shapes, state_sharding), state_sharding


def start(run: Run) -> tuple[optimizer_lib.Optimizer, TrainState, TrainState]:
    """Makes the optimizer, the state before the first update, and the shardings of an update's.

    With `config.train.ahead` the state is an `AheadState`; its first two batches are sampled with
    fresh adapters.
    """
    optimizer = optimizer_lib.make(**run.config.optimizer)
    moving = {"moving_reference": run.algorithm.reference_decay < 1}
    _, state_sharding = abstract_state(run.mesh, run.lora, optimizer, **moving)
    init = functools.partial(init_state, optimizer=optimizer, **moving)
    make = jax.jit(init, out_shardings=state_sharding)
    state = make(run.lora)
    if run.config.train.ahead:
        state = state.with_behaviour(make(run.lora).lora)
    return optimizer, state, state_sharding
