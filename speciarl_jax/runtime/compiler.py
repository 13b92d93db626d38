"""Flags of the compiler for processes that compute on CPUs alone."""

import importlib.metadata
import importlib.util
import os

import jax

# A step of the quickstart runs as fast with them, and compiles in less time (docs/speed.md).
_ON_CPU = {"--xla_backend_optimization_level": "1", "--xla_cpu_use_fusion_emitters": "false"}


def compile_quickly() -> None:
    """Adds flags to XLA_FLAGS where no accelerator can be found; those that are there stay.

    To be called before anything asks for a device: the compiler reads them once.
    """
    if not _only_cpus():
        return
    given = os.environ.get("XLA_FLAGS", "").split()
    named = {flag.partition("=")[0] for flag in given}
    added = [f"{name}={value}" for name, value in _ON_CPU.items() if name not in named]
    os.environ["XLA_FLAGS"] = " ".join(given + added)


def _only_cpus() -> bool:
    """Whether JAX is told to use CPUs, or has no library of an accelerator; asks for no device."""
    if platforms := jax.config.jax_platforms:
        return platforms == "cpu"
    if importlib.util.find_spec("libtpu") or importlib.util.find_spec("jax_plugins"):
        return False
    return not importlib.metadata.entry_points(group="jax_plugins")
