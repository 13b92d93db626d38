"""Defines the mesh, and in one table over which of its axes every array is cut."""

import functools
import itertools
import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from speciarl_jax.runtime import multihost

AXES = ("data", "fsdp", "tensor")
# The first axis of a batch of images is cut over both.
BATCH_AXES = ("data", "fsdp")

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
    """Makes a mesh over all devices, or over `devices`.

    Args:
      data: number of copies of the weights.
      fsdp: number of parts that weights and batch are cut into.
      tensor: number of parts that heads and hidden units are cut into.
      devices: array of devices; `jax.devices()` when None.

    One of the sizes may be -1: what the others leave.

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

    XLA's CPU backend connects the devices at their first exchange, and gives up on a process that
    comes half a minute later. Loading and compiling can keep processes apart for longer, so they
    connect before. Nothing happens in a run of one process.

    Raises:
      exit_codes.RestartNeeded: a process did not come in time.
      jax.errors.JaxRuntimeError: a process went away.
    """
    if jax.process_count() == 1:
        return
    multihost.allgather(None)
    groups = [axes for n in range(len(AXES)) for axes in itertools.combinations(AXES, n + 1)]

    @functools.partial(
        jax.shard_map, mesh=mesh, in_specs=PartitionSpec(), out_specs=PartitionSpec()
    )
    def exchange(x):
        return sum(jax.lax.psum(x, axes) for axes in groups)

    jax.block_until_ready(jax.jit(exchange)(np.float32(1)))


def mesh_alone(mesh: Mesh) -> Mesh:
    """Returns a mesh for programs that one process runs without the others.

    That is the mesh itself if there is one process; else one over this process's devices, which
    cuts weights over all of them.
    """
    if jax.process_count() == 1:
        return mesh
    return make_mesh(data=1, fsdp=-1, tensor=1, devices=jax.local_devices())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Cuts the first axis of an array over the devices that share a batch."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def replicated(mesh: Mesh) -> NamedSharding:
    """Puts the same array on every device."""
    return NamedSharding(mesh, PartitionSpec())


def place(mesh: Mesh, tree: Any) -> Any:
    """Copies arrays to every device; those that lie on the mesh already stay as they are."""

    def one(x):
        sharded = isinstance(x, jax.Array) and isinstance(x.sharding, NamedSharding)
        return x if sharded and x.sharding.mesh == mesh else jax.device_put(x, replicated(mesh))

    return jax.tree.map(one, tree)


def batch_parts(mesh: Mesh) -> int:
    """Returns the number of devices that the first axis of a batch is cut over."""
    return math.prod(mesh.shape[axis] for axis in BATCH_AXES)


def check_batch(mesh: Mesh, what: str, size: int) -> None:
    """Refuses a number of images that the mesh cannot cut evenly (ValueError)."""
    parts = batch_parts(mesh)
    if size < 1 or size % parts:
        raise ValueError(
            f"{what} is {size}, which cannot be cut over {parts} devices (mesh data x fsdp); "
            f"choose a multiple of {parts}"
        )


def param_sharding(
    mesh: Mesh, name: str, shape: tuple[int, ...], axes: tuple[str | None, ...]
) -> NamedSharding:
    """Returns where a parameter lies, by the logical names of its axes.

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


def put_param(mesh: Mesh):
    """Returns `put` for `hf_checkpoint.load`: it brings a parameter straight into its shards.

    Every process reads its own part of what is in a checkpoint; numpy arrays, which every process
    holds whole, are cut.
    """

    def put(path, array, axes):
        to = param_sharding(mesh, ".".join(map(str, path)), array.shape, axes)
        if isinstance(array, np.ndarray):
            return jax.make_array_from_callback(array.shape, to, lambda index: array[index])
        return array.place(to)

    return put


def put_batch(mesh: Mesh, batch: Any) -> Any:
    """Brings a batch of numpy arrays, each process's own rows, to a global batch on the devices."""
    make = functools.partial(jax.make_array_from_process_local_data, batch_sharding(mesh))
    return jax.tree.map(lambda x: make(np.asarray(x)), batch)


def own_rows(array: jax.Array) -> tuple[np.ndarray, np.ndarray]:
    """Returns rows of an array of `batch_sharding`, so that each row is one process's alone.

    Where several processes hold copies of a row, one of them has it here.

    Returns:
      The numbers of the rows, int [b], and their values [b, ...].
    """
    shards = [shard for shard in array.addressable_shards if shard.replica_id == 0]
    numbers = [np.arange(array.shape[0])[shard.index[0]] for shard in shards]
    values = [np.asarray(shard.data) for shard in shards]
    if not shards:
        return np.zeros(0, int), np.zeros((0, *array.shape[1:]), array.dtype)
    return np.concatenate(numbers), np.concatenate(values)


def local_rows(array: jax.Array) -> np.ndarray:
    """Returns this process's rows of an array of `batch_sharding`, in order: undoes `put_batch`."""
    shards = {shard.index[0].start or 0: shard.data for shard in array.addressable_shards}
    return np.concatenate([np.asarray(shards[start]) for start in sorted(shards)])


def put_rows(mesh: Mesh, rows: np.ndarray) -> jax.Array:
    """Brings all rows, which every process holds, to an array of `batch_sharding`."""
    return jax.make_array_from_callback(rows.shape, batch_sharding(mesh), lambda index: rows[index])


def shardings_of(mesh: Mesh, tree: Any) -> Any:
    """Returns the shardings of a pytree: `nnx.Variable` by their axes, other arrays replicated.

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


def placed(tree: Any, shardings: Any) -> Any:
    """Returns shapes and dtypes of a tree, with a tree of shardings or with one for all."""
    if isinstance(shardings, jax.sharding.Sharding):
        shardings = jax.tree.map(lambda _: shardings, tree)
    return jax.tree.map(
        lambda x, to: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=to), tree, shardings
    )


def mesh_axes(axis: str | None) -> tuple[str, ...]:
    """Returns the axes of the mesh that a logical axis is cut over."""
    found = RULES[axis] if axis is not None else None
    return (found,) if isinstance(found, str) else found or ()


def activation_spec(
    mesh: Mesh, shape: tuple[int, ...], axes: Sequence[str | None], whole: frozenset = frozenset()
) -> PartitionSpec:
    """Returns how an activation is cut, by the logical names of its axes.

    A side that the mesh does not divide is not cut, and none is cut over the mesh axes in `whole`.
    """

    def cut(size, axis):
        names = mesh_axes(axis)
        fits = names and not size % math.prod(mesh.shape[name] for name in names)
        return names if fits and not whole & set(names) else None

    return PartitionSpec(*(cut(*each) for each in zip(shape, axes, strict=True)))
