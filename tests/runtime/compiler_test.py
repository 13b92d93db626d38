"""Flags of the compiler on CPUs: where they are set, and that the compiler reads them."""

import os
import subprocess
import sys

import jax
import pytest

from speciarl_jax.runtime import compiler

BOTH = "--xla_backend_optimization_level=1 --xla_cpu_use_fusion_emitters=false"


@pytest.fixture
def flags_after(monkeypatch):
    """(platforms that JAX is told, flags that are there, module that is installed) -> flags."""
    known = jax.config.jax_platforms
    monkeypatch.setenv("XLA_FLAGS", "")  # so that it is as before afterwards

    def flags_after(platforms, given=None, installed=None):
        jax.config.update("jax_platforms", platforms)
        if given is None:
            monkeypatch.delenv("XLA_FLAGS", raising=False)
        else:
            monkeypatch.setenv("XLA_FLAGS", given)
        with monkeypatch.context() as patch:
            patch.setattr(
                compiler.importlib.util, "find_spec", lambda name: name == installed or None
            )
            compiler.compile_quickly()
        return os.environ.get("XLA_FLAGS")

    yield flags_after
    jax.config.update("jax_platforms", known)


def test_flags_are_added_where_only_cpus_are_used(flags_after):
    assert flags_after("cpu") == BOTH
    assert flags_after(None) == BOTH
    devices = "--xla_force_host_platform_device_count=4"
    assert flags_after("cpu", devices) == f"{devices} {BOTH}"


def test_flags_that_are_given_stay(flags_after):
    level, emitters = BOTH.split()
    assert flags_after("cpu", "--xla_backend_optimization_level=3") == (
        f"--xla_backend_optimization_level=3 {emitters}"
    )
    assert flags_after("cpu", f"{level} --xla_cpu_use_fusion_emitters=true") == (
        f"{level} --xla_cpu_use_fusion_emitters=true"
    )


def test_an_accelerators_compiler_is_left_alone(flags_after):
    assert flags_after("cuda,cpu") is None and flags_after("tpu", "--a=1") == "--a=1"
    assert flags_after(None, installed="libtpu") is None
    assert flags_after(None, installed="jax_plugins") is None


def test_the_compiler_reads_them_after_jax_was_imported(tmp_path):
    program = (
        "import jax\nfrom speciarl_jax.runtime import compiler\n"
        "compiler.compile_quickly()\njax.jit(lambda x: x + 1)(1.0)\n"
    )
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": f"--xla_dump_to={tmp_path}"}
    subprocess.run([sys.executable, "-c", program], env=environment, check=True, timeout=300)
    read = next(tmp_path.glob("*debug_options")).read_text()
    assert "xla_backend_optimization_level: 1\n" in read
    assert "xla_cpu_use_fusion_emitters: false\n" in read
