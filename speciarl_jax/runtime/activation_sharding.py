"""Where activations lie on a mesh: models name the axes, whoever runs them says where those are.

Without that, a compiler that is only told where weights and batches lie may well copy a whole batch
to every device and cut the products instead.
"""

import contextlib
import contextvars
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import jax

# A logical name for each axis of an array; None for one that is not cut.
Axes = tuple[str | None, ...]


class Placement(Protocol):
    """What a mesh does for `constrain`, `parts` and `on_each_device`."""

    def parts(self, size: int, axis: str) -> int: ...

    def constrain(self, x: jax.Array, axes: Axes) -> jax.Array: ...

    def on_each_device(
        self, function: Callable, arrays: Sequence[jax.Array], axes: Sequence[Axes], out: Axes
    ) -> jax.Array: ...


_current: contextvars.ContextVar[Placement | None] = contextvars.ContextVar(
    "placement", default=None
)


@contextlib.contextmanager
def placing(placement: Placement) -> Iterator[None]:
    """While this lasts, `placement` decides; it belongs around the tracing of a program."""
    token = _current.set(placement)
    try:
        yield
    finally:
        _current.reset(token)


def constrain(tree: Any, *axes: Any) -> Any:
    """The same arrays, placed by the names of their axes; as they are where nobody places any.

    Args:
      tree: of arrays that all have these axes.
      *axes: a logical axis for each, or None for one that is not cut. `...` stands for as many that
        are not cut as an array has beyond the others.
    """
    placement = _current.get()
    if placement is None:
        return tree

    def one(x):
        names = list(axes)
        if ... in names:
            at = names.index(...)
            names[at : at + 1] = [None] * (x.ndim - len(names) + 1)
        return placement.constrain(x, tuple(names))

    return jax.tree.map(one, tree)


def parts(size: int, axis: str) -> int:
    """How many devices an axis of this size is cut over, each with as much as the others."""
    placement = _current.get()
    return 1 if placement is None else placement.parts(size, axis)


def on_each_device(
    function: Callable, arrays: Sequence[jax.Array], axes: Sequence[Axes], out: Axes
) -> jax.Array:
    """`function(*arrays)`, for each device on its own parts: kernels that no compiler can cut.

    Args:
      function: treats what lies along a named axis apart from each other.
      arrays: its arguments.
      axes: their logical axes.
      out: of the result.
    """
    placement = _current.get()
    if placement is None:
        return function(*arrays)
    return placement.on_each_device(function, arrays, axes, out)
