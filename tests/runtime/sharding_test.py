"""The mesh and its rules, and the same numbers on one device and on eight."""

import dataclasses
import math

import jax
import numpy as np
import pytest
from flax import nnx
from small_run import arrays, small_run

from speciarl_jax.runtime import sharding
from speciarl_jax.training import state as state_lib

ONE = (1, 1, 1)
INT8 = {"rollout__decode_weights": "int8", "rollout__kv_cache": "int8"}


def on_both(start_program, folder, mesh, tmp_path, **config):
    """Name -> array of a step on the mesh, and on one device, in a process with eight devices."""
    out = tmp_path / "found.npz"
    given = {"policy": str(folder), "out": str(out), "meshes": [ONE, mesh], "config": config}
    process = start_program("mesh_program", devices=8, **given)
    printed, _ = process.communicate(timeout=900)
    assert process.returncode == 0, printed
    found = {}
    for name, value in np.load(out).items():
        on, name = name.split(" ", 1)
        found.setdefault(tuple(map(int, on)), {})[name] = value
    return found[mesh], found[ONE]


@pytest.mark.slow
def test_decoding_in_int8_is_nearly_the_same_on_every_mesh(policy_folder, start_program, tmp_path):
    """A key in the middle between two steps may be rounded to the other one; few are."""
    got, want = on_both(start_program, policy_folder, (2, 2, 2), tmp_path, **INT8)
    tokens, others = (x["['rollout'].tokens_BNT"] for x in (want, got))
    same = (tokens == others).all(axis=-1)
    assert same.size == 32 and same.sum() >= 28
    logp, other = (x["['rollout'].logp_BNT"] for x in (want, got))
    gap = np.abs(other - logp)[same]
    assert np.sqrt(np.mean(gap**2)) < 0.02 and np.max(gap) < 0.3, (gap.mean(), gap.max())


@pytest.mark.parametrize(
    "folder, mesh",
    [
        ("policy_folder", (2, 2, 2)),
        pytest.param("policy_folder", (8, 1, 1), marks=pytest.mark.slow),
        pytest.param("policy_folder", (1, 8, 1), marks=pytest.mark.slow),
        pytest.param("qwen3_folder", (2, 2, 2), marks=pytest.mark.slow),
        pytest.param("qwen3_folder", (1, 8, 1), marks=pytest.mark.slow),
    ],
)
def test_a_step_gives_the_same_numbers_on_every_mesh(
    folder, mesh, request, start_program, tmp_path
):
    folder = request.getfixturevalue(folder)
    got, want = on_both(start_program, folder, mesh, tmp_path)
    assert got.keys() == want.keys()
    before = {f"['lora']{name}": value for name, value in arrays(small_run(folder).lora).items()}
    moved = 0.0
    for name, value in want.items():
        if "tokens" in name or "mask" in name or "category" in name:
            np.testing.assert_array_equal(got[name], value, err_msg=name)
        elif name in before:
            np.testing.assert_allclose(got[name], value, rtol=0, atol=1e-5, err_msg=name)
            moved = max(moved, float(np.abs(value - before[name]).max()))
        else:
            np.testing.assert_allclose(got[name], value, rtol=1e-3, atol=1e-4, err_msg=name)
    # The step was no small one, and its answers were not all alike.
    assert moved > 3e-3 and sum(name in before for name in want) == len(before)
    assert len(np.unique(want["['rollout'].tokens_BNT"])) > 20
    assert len(np.unique(want["['category']"])) > 4


def devices(count):
    """Enough of an array of devices for the arithmetic; the real mesh needs real ones."""
    return np.array(jax.devices()[:1] * count)


def test_a_size_of_minus_one_takes_what_is_left():
    for sizes in ((1, 1, -1), (1, -1, 1), (-1, 1, 1)):
        named = dict(zip(sharding.AXES, sizes, strict=True))
        mesh = sharding.make_mesh(**named, devices=jax.devices()[:1])
        assert dict(mesh.shape) == {"data": 1, "fsdp": 1, "tensor": 1}


@pytest.mark.parametrize(
    "sizes, count",
    [((2, 2, 1), 8), ((3, -1, 1), 8), ((-1, -1, 1), 8), ((0, -1, 1), 8), ((16, -1, 1), 8)],
)
def test_a_mesh_that_does_not_fit_is_refused_with_both_numbers(sizes, count):
    data, fsdp, tensor = sizes
    said = f"data={data}, fsdp={fsdp}, tensor={tensor}, but there are {count} devices"
    with pytest.raises(ValueError, match=said):
        sharding.make_mesh(data=data, fsdp=fsdp, tensor=tensor, devices=devices(count))


@dataclasses.dataclass(frozen=True)
class Sizes:
    """Stands for a mesh where only its sizes are asked for."""

    shape: dict[str, int]


MESH = Sizes({"data": 2, "fsdp": 4, "tensor": 2})


def test_a_batch_is_a_multiple_of_the_devices_that_share_it():
    for size in (8, 16, 64):
        sharding.check_batch(MESH, "size", size)
    for size in (0, 4, 12, -8):
        said = f"my batch is {size}, which cannot be cut over 8 devices .*multiple of 8"
        with pytest.raises(ValueError, match=said):
            sharding.check_batch(MESH, "my batch", size)


def test_a_parameter_that_the_rules_cannot_place_is_refused():
    cases = [
        ((4, 4), ("embed", "hidden"), r"w has axes \['hidden'\], which sharding.RULES lacks"),
        ((4, 4), ("heads", "mlp"), "w with axes .* would lie twice on one mesh axis"),
        ((6, 4), ("embed", "mlp"), "w has a side of 6, which cannot be cut into 4 .*mesh.fsdp"),
        ((4, 3), ("embed", "mlp"), "w has a side of 3, which cannot be cut into 2 .*mesh.tensor"),
    ]
    for shape, axes, said in cases:
        with pytest.raises(ValueError, match=said):
            sharding.param_sharding(MESH, "w", shape, axes)


def test_every_parameter_of_the_policy_has_axes_that_the_rules_know(run):
    flat = [*nnx.to_flat_state(run.base), *nnx.to_flat_state(run.lora)]
    cut = set()
    for path, variable in flat:
        assert len(variable.axes) == len(variable.shape), path
        assert set(variable.axes) - {None} <= sharding.RULES.keys(), path
        placed = [sharding.RULES[axis] for axis in variable.axes if axis is not None]
        cut |= set(placed)
        if math.prod(variable.shape) > 2000:
            assert {"fsdp", "tensor"} & set(placed), f"{path} would be whole on every device"
    assert cut == {None, "fsdp", "tensor"}


def test_the_optimizer_lies_beside_the_adapters(run):
    _, state, where = state_lib.start(run)
    adapters = [place.spec for place in jax.tree.leaves(where.lora)]
    assert len(set(adapters)) > 2
    every = [place.spec for place in jax.tree.leaves(where.opt_state)]
    # The two moments, in the order of the adapters; counters lie everywhere.
    assert [spec for spec in every if len(spec)] == [*adapters, *adapters]
    for leaf, place in zip(jax.tree.leaves(state), jax.tree.leaves(where), strict=True):
        assert leaf.sharding.is_equivalent_to(place, leaf.ndim)
