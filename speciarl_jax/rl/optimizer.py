"""The optimizer of the adapters."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax


class Optimizer(NamedTuple):
    """Holds an `optax.GradientTransformation` with what it does, for the metrics of an update.

    Attributes:
      init: parameters -> state.
      update: (gradients, state, parameters) -> what to add to the parameters, and the state.
      learning_rate: state -> the rate of the next update, a float32 scalar.
      max_grad_norm: a gradient with a larger norm is scaled down to this one.
    """

    init: Callable[..., Any]
    update: Callable[..., Any]
    learning_rate: Callable[[Any], jax.Array]
    max_grad_norm: float


def make(
    *,
    learning_rate: float,
    warmup_steps: int,
    decay_steps: int,
    weight_decay: float,
    b1: float,
    b2: float,
    epsilon: float,
    max_grad_norm: float,
) -> Optimizer:
    """AdamW (arXiv 1711.05101) with a clipped gradient and a linear warm-up.

    Behind it the rate is constant, or falls to 0 as a cosine (arXiv 1608.03983, no restarts).

    Args:
      learning_rate: after the warm-up.
      warmup_steps: updates from 0 to `learning_rate`; 0 for none.
      decay_steps: all updates, warm-up included; the rate is 0 after them. 0: no decay.
      weight_decay: decoupled, times the learning rate.
      b1: decay of the first moment.
      b2: decay of the second moment.
      epsilon: added to the root of the second moment.
      max_grad_norm: the whole gradient is scaled down to this norm.

    Raises:
      ValueError: a value that no optimizer can run with.
    """
    if not (learning_rate > 0 and max_grad_norm > 0 and warmup_steps >= 0):
        raise ValueError(
            f"config.optimizer.learning_rate is {learning_rate} and config.optimizer.max_grad_norm "
            f"{max_grad_norm}, which must be above 0, and config.optimizer.warmup_steps is "
            f"{warmup_steps}, which must be at least 0"
        )
    if decay_steps and decay_steps <= warmup_steps:
        raise ValueError(
            f"config.optimizer.decay_steps {decay_steps} counts the warm-up too and must be above "
            f"warmup_steps {warmup_steps}, or 0 for a constant rate"
        )
    # The first update is taken at 1 / warmup_steps, not at 0: a step that changes nothing is lost.
    rise = max(warmup_steps - 1, 0)
    schedule = optax.linear_schedule(learning_rate / max(warmup_steps, 1), learning_rate, rise)
    if decay_steps:
        fall = optax.cosine_decay_schedule(learning_rate, decay_steps - rise)
        schedule = optax.join_schedules([schedule, fall], [rise])
    chain = optax.chain(
        optax.clip_by_global_norm(max_grad_norm),
        optax.adamw(schedule, b1=b1, b2=b2, eps=epsilon, weight_decay=weight_decay),
    )

    def learning_rate(state):
        _, (*_, scheduled) = state
        return jnp.float32(schedule(scheduled.count))

    return Optimizer(*chain, learning_rate, max_grad_norm)
