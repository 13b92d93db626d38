"""The chips a plan is for: their limits, and devices to compile for without having them."""

import contextlib
import dataclasses
import importlib.util
import os
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

_GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
    """Limits of one chip.

    FLOP/s, memory and link rates are those of Google Cloud's TPU pages; `capacity` is what the
    compiler of libtpu 0.0.52 lets a program use of the chip's memory.
    """

    flops: float  # FLOP/s of bfloat16 products
    memory_rate: float  # bytes/s between the chip and its memory
    link_rate: float  # bytes/s that a chip exchanges with its neighbours, all links and directions
    capacity: int  # bytes
    options: tuple[tuple[str, str], ...] = ()  # for `get_topology_desc`


CHIPS = {
    # Both cores as one device.
    "v4": Chip(275e12, 1228e9, 300e9, int(30.5 * _GIB), (("chip_config_name", "megacore"),)),
    "v5e": Chip(197e12, 819e9, 200e9, int(15.75 * _GIB)),
    "v5p": Chip(459e12, 2765e9, 600e9, int(95.73 * _GIB)),
    "v6e": Chip(918e12, 1640e9, 400e9, int(31.24 * _GIB)),
}
# A chip without an ending of its own, where the smallest layout of its kind is no default.
LIBTPU = "libtpu==0.0.52"


def devices(topology: str) -> tuple[Chip | None, np.ndarray]:
    """The kind of chip and the devices of a topology; None for processors.

    No device of this process may be in use yet: JAX learns here which ones it is to have.

    Args:
      topology: "v5e:4x4", "v5p:2x2x2", ... as libtpu writes them, or "cpu:8" for eight virtual
        processors.

    Raises:
      ValueError: no such topology.
      ModuleNotFoundError: libtpu is not installed.
    """
    kind, _, layout = topology.partition(":")
    # Whatever this machine has is not what is planned for.
    jax.config.update("jax_platforms", "cpu")
    if kind == "cpu" and layout.isdigit() and int(layout) > 0:
        jax.config.update("jax_num_cpu_devices", int(layout))
        return None, np.array(jax.devices())
    if kind not in CHIPS or not layout:
        raise ValueError(
            f"--topology={topology} is not known; give one of {', '.join(CHIPS)} and a layout "
            "(v5e:4x4, v5p:2x2x2), or cpu:NUMBER"
        )
    if importlib.util.find_spec("libtpu") is None:
        raise ModuleNotFoundError(
            f"--topology={topology} needs the TPU compiler, which works without a TPU: "
            f"pip install '{LIBTPU}'"
        )
    return CHIPS[kind], np.array(_tpu_devices(topology, CHIPS[kind]))


def _tpu_devices(topology: str, chip: Chip) -> list[Any]:
    """Abstract devices; several processes of a machine may do this at once."""
    # libtpu reads these when it is loaded. It guards the TPU of a machine by a lock file, and asks
    # the cloud's metadata server what it runs on; a compiler alone needs neither.
    os.environ["ALLOW_MULTIPLE_LIBTPU_LOAD"] = "1"
    os.environ["TPU_SKIP_MDS_QUERY"] = "1"
    os.environ.setdefault("TPU_STDERR_LOG_LEVEL", "3")
    os.environ.setdefault("TPU_MIN_LOG_LEVEL", "3")
    from jax.experimental import topologies

    try:
        with _without_flags_of_cpus():
            found = topologies.get_topology_desc(
                platform="tpu", topology_name=topology, **dict(chip.options)
            )
            _compile_something(found.devices[0])
    except jax.errors.JaxRuntimeError as error:
        raise ValueError(f"--topology={topology} is refused by the TPU compiler: {error}") from None
    return found.devices


@contextlib.contextmanager
def _without_flags_of_cpus() -> Iterator[None]:
    """libtpu ends the process at flags that it does not know: few of the compiler for CPUs."""
    given = os.environ.get("XLA_FLAGS", "")
    os.environ["XLA_FLAGS"] = " ".join(f for f in given.split() if not f.startswith("--xla_cpu_"))
    try:
        yield
    finally:
        os.environ["XLA_FLAGS"] = given


def _compile_something(device: Any) -> None:
    """libtpu reads the flags as it compiles for the first time."""
    where = jax.sharding.SingleDeviceSharding(device)
    jax.jit(lambda x: x + 1).lower(jax.ShapeDtypeStruct((), np.float32, sharding=where)).compile()
