"""From the configuration to the policy: the kernel of its attention."""

import types

import jax
import numpy as np
import pytest

from speciarl_jax.models import load_policy
from speciarl_jax.runtime import sharding


def mesh_of(platform):
    return types.SimpleNamespace(devices=np.array([types.SimpleNamespace(platform=platform)]))


@pytest.mark.parametrize(
    "name, platform, kind",
    [
        ("auto", "tpu", "splash"),
        ("auto", "gpu", "xla"),
        ("auto", "cpu", "blocked"),
        ("blocked", "gpu", "blocked"),
        ("splash", "tpu", "splash"),
        ("splash", "cpu", "splash_interpret"),
        ("cudnn", "gpu", "cudnn"),
        ("cudnn", "cpu", "cudnn_by_xla"),
    ],
)
def test_which_kernel_computes_attention(small_config, name, platform, kind):
    config = small_config(model__attention=name, model__dtype="bfloat16")
    assert load_policy.attention_kind(config, mesh_of(platform)) == kind


def test_a_mesh_without_devices_counts_as_cpus(small_config):
    mesh = jax.sharding.AbstractMesh((1, 4, 2), sharding.AXES)
    assert load_policy.attention_kind(small_config(model__attention="auto"), mesh) == "blocked"


def test_kernels_that_do_not_fit_are_refused(small_config):
    with pytest.raises(ValueError, match="'flash'; choose 'auto', 'xla', 'blocked', 'splash' or"):
        load_policy.attention_kind(small_config(model__attention="flash"), mesh_of("gpu"))
    config = small_config(model__attention="cudnn", model__dtype="float32")
    with pytest.raises(ValueError, match="cudnn.*bfloat16.*config.model.dtype is 'float32'"):
        load_policy.attention_kind(config, mesh_of("gpu"))
