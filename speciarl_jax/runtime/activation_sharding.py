"""Places activations on a mesh: models name the axes, `sharding.RULES` says how they are cut.

Without it, a compiler that only knows where weights and batches lie may well copy a whole batch to
every device and cut the products instead.
"""

import contextvars
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding

from speciarl_jax.runtime import sharding

# A logical name for each axis of an array; None for one that is not cut.
Axes = tuple[str | None, ...]

_mesh: contextvars.ContextVar[Mesh | None] = contextvars.ContextVar("mesh", default=None)


def on_mesh(mesh: Mesh, function: Callable) -> Callable:
    """Returns the same function, whose activations are traced to lie on `mesh` as `RULES` says."""

    @functools.wraps(function)
    def placed(*args, **kwargs):
        token = _mesh.set(mesh)
        try:
            return function(*args, **kwargs)
        finally:
            _mesh.reset(token)

    return placed if mesh.size > 1 else function


def constrain(tree: Any, *axes: Any) -> Any:
    """Places arrays by the names of their axes; changes nothing outside of `on_mesh`.

    An axis that its part of the mesh does not divide is not cut.

    Args:
      tree: of arrays that all have these axes.
      *axes: a logical axis for each, or None for one that is not cut. `...` stands for as many that
        are not cut as an array has beyond the others.
    """
    mesh = _mesh.get()
    if mesh is None:
        return tree

    def one(x):
        names = list(axes)
        if ... in names:
            at = names.index(...)
            names[at : at + 1] = [None] * (x.ndim - len(names) + 1)
        spec = sharding.activation_spec(mesh, x.shape, names)
        return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, spec))

    return jax.tree.map(one, tree)


def parts(size: int, axis: str) -> int:
    """Returns how many devices an axis of this size is cut over, in equal parts."""
    mesh = _mesh.get()
    count = 1 if mesh is None else math.prod(mesh.shape[name] for name in sharding.mesh_axes(axis))
    return 1 if size % count else count


def on_each_device(
    function: Callable, arrays: Sequence[jax.Array], axes: Sequence[Axes], out: Axes
) -> jax.Array:
    """Runs `function(*arrays)` on each device for its own parts: for kernels that no compiler cuts.

    Args:
      function: must treat the entries along a named axis independently.
      arrays: its arguments; the result has the shape of the first.
      axes: their logical axes.
    """
    mesh = _mesh.get()
    if mesh is None:
        return function(*arrays)
    # Queries are not cut where their keys cannot be.
    whole = frozenset(
        name
        for x, names in zip(arrays, axes, strict=True)
        for size, axis in zip(x.shape, names, strict=True)
        for name in sharding.mesh_axes(axis)
        if size % mesh.shape[name]
    )
    specs = tuple(
        sharding.activation_spec(mesh, x.shape, a, whole) for x, a in zip(arrays, axes, strict=True)
    )
    out_spec = sharding.activation_spec(mesh, arrays[0].shape, out, whole)
    return jax.shard_map(function, mesh=mesh, in_specs=specs, out_specs=out_spec, check_vma=False)(
        *arrays
    )
