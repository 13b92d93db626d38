"""The mesh, and which axis of every array lies on which axis of it. No other file knows."""

import functools
import itertools
import math
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from orbax.checkpoint import multihost

from speciarl_jax.runtime import activation_sharding

AXES = ("data", "fsdp", "tensor")
# The batch of images is cut over both.
BATCH_AXES = ("data", "fsdp")

# Seconds that processes wait for each other at the start.
MEETING = 1800
_meetings = itertools.count()

# Logical axis of a parameter or an activation -> axis of the mesh.
RULES = {
    "batch": BATCH_AXES,
    "layers": None,
    "embed": "fsdp",
    "heads": "tensor",
    "kv_heads": "tensor",
    "mlp": "tensor",
    "vocab": "tensor",
    "lora": None,
    "patch": None,
    "vision_embed": "fsdp",
    "vision_heads": "tensor",
    "vision_mlp": "tensor",
}


def make_mesh(*, data: int, fsdp: int, tensor: int, devices: Any = None) -> Mesh:
    """A mesh over all devices, or over `devices`.

    Args:
      data: copies of the weights.
      fsdp: parts that weights and batch are cut into.
      tensor: parts that heads and hidden units are cut into.
      devices: array of devices; `jax.devices()` when None.

    One of the sizes may be -1: whatever is left.

    Raises:
      ValueError: the sizes do not multiply to the number of devices.
    """
    devices = np.asarray(jax.devices() if devices is None else devices).ravel()
    sizes = dict(zip(AXES, (data, fsdp, tensor), strict=True))
    open_axes = [name for name, size in sizes.items() if size == -1]
    if len(open_axes) == 1:
        others = math.prod(size for size in sizes.values() if size != -1)
        sizes[open_axes[0]] = len(devices) // others if others > 0 else 0
    if min(sizes.values()) < 1 or math.prod(sizes.values()) != len(devices):
        raise ValueError(
            f"config.mesh is data={data}, fsdp={fsdp}, tensor={tensor}, but there are "
            f"{len(devices)} devices; the sizes must multiply to that number, one may be -1"
        )
    return jax.make_mesh(
        tuple(sizes.values()),
        AXES,
        axis_types=(jax.sharding.AxisType.Auto,) * len(AXES),
        devices=devices,
    )


def barrier(mesh: Mesh) -> None:
    """Waits for all processes, and lets their devices exchange once along every axis.

    XLA's CPU backend connects the devices of an exchange at the first one, and gives up on a
    process that comes half a minute later. Loading and compiling can keep them apart for longer,
    so they connect before. Nothing happens in a run of one process.

    Raises:
      jax.errors.JaxRuntimeError: a process did not come, or went away.
    """
    if jax.process_count() == 1:
        return
    # A name serves for one meeting; all processes count alike.
    name = f"meeting_{next(_meetings)}"
    multihost.get_barrier_sync_fn()(key=name, timeout_ms=1000 * MEETING)
    groups = [axes for n in range(len(AXES)) for axes in itertools.combinations(AXES, n + 1)]

    @functools.partial(
        jax.shard_map, mesh=mesh, in_specs=PartitionSpec(), out_specs=PartitionSpec()
    )
    def exchange(x):
        return sum(jax.lax.psum(x, axes) for axes in groups)

    jax.block_until_ready(jax.jit(exchange)(np.float32(1)))


def mesh_alone(mesh: Mesh) -> Mesh:
    """A mesh for programs that one process runs without the others.

    The mesh itself if there is one process; else one over this process's devices, which cuts
    weights over all of them.
    """
    if jax.process_count() == 1:
        return mesh
    return make_mesh(data=1, fsdp=-1, tensor=1, devices=jax.local_devices())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The first axis of every array of a batch is cut over the devices that share it."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def replicated(mesh: Mesh) -> NamedSharding:
    """The same array on every device."""
    return NamedSharding(mesh, PartitionSpec())


def place(mesh: Mesh, tree: Any) -> Any:
    """Arrays that lie on the mesh stay where they are; all others are copied to every device."""
    where = replicated(mesh)

    def one(x):
        sharded = isinstance(x, jax.Array) and isinstance(x.sharding, NamedSharding)
        return x if sharded and x.sharding.mesh == mesh else jax.device_put(x, where)

    return jax.tree.map(one, tree)


def batch_parts(mesh: Mesh) -> int:
    """Devices that the first axis of a batch is cut over."""
    return math.prod(mesh.shape[axis] for axis in BATCH_AXES)


def check_batch(mesh: Mesh, what: str, size: int) -> None:
    """Refuses a number of images that the mesh cannot cut evenly.

    Raises:
      ValueError: names `what` and both numbers.
    """
    parts = batch_parts(mesh)
    if size < 1 or size % parts:
        raise ValueError(
            f"{what} is {size}, which cannot be cut over {parts} devices (mesh data x fsdp); "
            f"choose a multiple of {parts}"
        )


def param_sharding(
    mesh: Mesh, name: str, shape: tuple[int, ...], axes: tuple[str | None, ...]
) -> NamedSharding:
    """Where a parameter lies, by the logical names of its axes.

    Raises:
      ValueError: an axis is unknown, two of them share a mesh axis, or a size does not divide.
    """
    unknown = [axis for axis in axes if axis is not None and axis not in RULES]
    if unknown:
        raise ValueError(f"parameter {name} has axes {unknown}, which sharding.RULES lacks")
    # A side of 1 is not cut: the scales of int8 weights have the axes of their kernels.
    spec = [
        None if axis is None or size == 1 else RULES[axis]
        for size, axis in zip(shape, axes, strict=True)
    ]
    used = [axis for axis in spec if axis is not None]
    if len(set(used)) != len(used):
        raise ValueError(f"parameter {name} with axes {axes} would lie twice on one mesh axis")
    for size, axis in zip(shape, spec, strict=True):
        if axis is not None and size % mesh.shape[axis]:
            raise ValueError(
                f"parameter {name} has a side of {size}, which cannot be cut into "
                f"{mesh.shape[axis]} parts; make config.mesh.{axis} a divisor of it"
            )
    return NamedSharding(mesh, PartitionSpec(*spec))


class OnMesh:
    """`activation_sharding.Placement`: activations lie as `RULES` says.

    An axis that its part of the mesh does not divide is left whole.
    """

    def __init__(self, mesh: Mesh):
        self._mesh = mesh

    def parts(self, size, axis):
        count = math.prod(self._mesh.shape[name] for name in self._names(axis))
        return 1 if size % count else count

    def _spec(self, shape, axes, whole=frozenset()) -> PartitionSpec:
        def cut(size, axis):
            names = self._names(axis)
            fits = names and not size % math.prod(self._mesh.shape[name] for name in names)
            return names if fits and not whole & set(names) else None

        return PartitionSpec(*(cut(*each) for each in zip(shape, axes, strict=True)))

    @staticmethod
    def _names(axis: str | None) -> tuple[str, ...]:
        where = RULES[axis] if axis is not None else None
        return (where,) if isinstance(where, str) else where or ()

    def constrain(self, x, axes):
        where = NamedSharding(self._mesh, self._spec(x.shape, axes))
        return jax.lax.with_sharding_constraint(x, where)

    def on_each_device(self, function, arrays, axes, out):
        # Queries are not cut where their keys cannot be.
        sides = [
            (size, name)
            for x, names in zip(arrays, axes, strict=True)
            for size, axis in zip(x.shape, names, strict=True)
            for name in self._names(axis)
        ]
        whole = frozenset(name for size, name in sides if size % self._mesh.shape[name])
        specs = tuple(self._spec(x.shape, a, whole) for x, a in zip(arrays, axes, strict=True))
        # The result is as large as the first argument.
        out_spec = self._spec(arrays[0].shape, out, whole)
        return jax.shard_map(
            function, mesh=self._mesh, in_specs=specs, out_specs=out_spec, check_vma=False
        )(*arrays)


def on_mesh(mesh: Mesh, function: Callable) -> Callable:
    """The same function, whose activations are traced to lie as `RULES` says."""

    @functools.wraps(function)
    def placed(*args, **kwargs):
        with activation_sharding.placing(OnMesh(mesh)):
            return function(*args, **kwargs)

    return placed if mesh.size > 1 else function


def put_param(mesh: Mesh):
    """`put` for `hf.load`: a parameter goes straight into its shards.

    Every process reads its own part of what is in a checkpoint; numpy arrays, which every process
    holds whole, are cut.
    """

    def put(path, array, axes):
        where = param_sharding(mesh, ".".join(map(str, path)), array.shape, axes)
        if isinstance(array, np.ndarray):
            return jax.make_array_from_callback(array.shape, where, lambda index: array[index])
        return array.place(where)

    return put


def put_batch(mesh: Mesh, batch: Any) -> Any:
    """A batch of numpy arrays, each process's own rows, to one global batch of device arrays."""
    where = batch_sharding(mesh)
    return jax.tree.map(
        lambda x: jax.make_array_from_process_local_data(where, np.asarray(x)), batch
    )


def own_rows(array: jax.Array) -> tuple[np.ndarray, np.ndarray]:
    """Rows of an array of `batch_sharding`, so that each row is one process's and no other's.

    Returns:
      int [b], which rows, and their values [b, ...]. Where several processes hold copies of a row,
      one of them has it here.
    """
    shards = [shard for shard in array.addressable_shards if shard.replica_id == 0]
    numbers = [np.arange(array.shape[0])[shard.index[0]] for shard in shards]
    values = [np.asarray(shard.data) for shard in shards]
    if not shards:
        return np.zeros(0, int), np.zeros((0, *array.shape[1:]), array.dtype)
    return np.concatenate(numbers), np.concatenate(values)


def local_rows(array: jax.Array) -> np.ndarray:
    """This process's rows of an array of `batch_sharding`, in order: undoes `put_batch`."""
    shards = {shard.index[0].start or 0: shard.data for shard in array.addressable_shards}
    return np.concatenate([np.asarray(shards[start]) for start in sorted(shards)])


def put_rows(mesh: Mesh, rows: np.ndarray) -> jax.Array:
    """All rows, which every process holds, to an array of `batch_sharding`."""
    where = batch_sharding(mesh)
    return jax.make_array_from_callback(rows.shape, where, lambda index: rows[index])


def shardings_of(mesh: Mesh, tree: Any) -> Any:
    """The shardings of a pytree of `nnx.Variable` (by their axes) and other arrays (replicated).

    Optimizer states keep the variables of the parameters they belong to, so they lie beside them.
    """

    def one(path, leaf):
        if not isinstance(leaf, nnx.Variable):
            return replicated(mesh)
        name = jax.tree_util.keystr(path)
        # int8 weights are two arrays.
        return jax.tree.map(lambda x: param_sharding(mesh, name, x.shape, leaf.axes), leaf)

    return jax.tree_util.tree_map_with_path(
        one, tree, is_leaf=lambda leaf: isinstance(leaf, nnx.Variable)
    )


def placed(tree: Any, where: Any) -> Any:
    """Shapes and dtypes of a tree, with its shardings or with one for all."""
    if isinstance(where, jax.sharding.Sharding):
        where = jax.tree.map(lambda _: where, tree)
    return jax.tree.map(
        lambda x, w: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=w), tree, where
    )
