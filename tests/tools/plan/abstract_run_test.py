"""Abstract programs take and give what a real run's programs do."""

import jax
import plans
import pytest
import small_run

from speciarl_jax.runtime import sharding
from speciarl_jax.tools.plan import abstract_run, programs
from speciarl_jax.training import state as state_lib
from speciarl_jax.training import steps

GRID = (4, 4)


def shapes(tree):
    return jax.tree.map(lambda x: (x.shape, x.dtype), tree)


def programs_of(config, run, mesh=None, only=()):
    plan = plans.plan(config, run.model_config, mesh or run.mesh, GRID, 40)
    return {program.name: program for program in programs.programs(plan, only)}


def test_the_planner_compiles_the_step_that_training_runs(run):
    batch = small_run.batch_of(run)
    plan = plans.plan(run.config, run.model_config, run.mesh, GRID, batch.tokens_BP.shape[1])
    [found] = programs.programs(plan)
    assert found.name == "step"
    state, base, _, abstract_batch, key = found.arguments
    optimizer, real, state_sharding = state_lib.start(run)
    for got, want in ((state, real), (base, run.base), (abstract_batch, batch)):
        assert jax.tree.structure(got) == jax.tree.structure(want)
        assert jax.tree.leaves(shapes(got)) == jax.tree.leaves(shapes(want))
        for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
            assert a.sharding.is_equivalent_to(b.sharding, a.ndim)
    known = steps.key_of(run, 1)
    assert (key.shape, key.dtype) == (known.shape, known.dtype)
    # The program itself, on the real run's verifier.
    step = steps.programs(run, optimizer, state_sharding)["step"]
    want = jax.eval_shape(step, real, run.base, run.verifier, batch, known)
    state, metrics = plans.outputs(found)
    # The run's verifier is no tree.
    metrics = {k: v for k, v in metrics.items() if k not in ("verify/by_tree", "verify/unmatched")}
    assert (state, metrics) == want


@pytest.mark.parametrize("kind", ["three", "dynamic"])
def test_stages_fit_together(run, small_config, kind):
    dynamic = {"train__dynamic_sampling__max_rounds": 2, "train__dynamic_sampling__batch_size": 16}
    config = small_config(train__fused=False, **dynamic if kind == "dynamic" else {})
    found = programs_of(config, run)
    assert list(found) == ["rollout", "verify", "update"]
    sampled = 16 if kind == "dynamic" else 8
    assert plans.outputs(found["rollout"])[1].tokens_BNT.shape == (sampled, 4, 8)
    assert plans.outputs(found["verify"])[0].shape == (sampled, 4)
    before, _, groups = found["update"].arguments
    assert groups.rollout.tokens_BNT.shape == (8, 4, 8) and groups.category_BN.shape == (8, 4)
    assert groups.prompt.tokens_BP.shape == (8, 40)
    state, metrics = plans.outputs(found["update"])
    assert shapes(state) == shapes(before)
    assert metrics["update/loss"].shape == ()


def test_stages_of_a_fused_step_and_evaluation_can_be_asked_for(run, small_config):
    names = ("update", "evaluate", "step")
    found = programs_of(small_config(), run, only=names)
    assert tuple(found) == names
    assert plans.outputs(found["evaluate"])[1].tokens_BNT.shape == (16, 1, 8)
    with pytest.raises(ValueError, match="there is no 'learn'; choose among"):
        programs_of(small_config(), run, only=("learn",))


def test_a_mesh_of_devices_that_are_not_here_will_do(run, small_config):
    config = small_config()
    mesh = jax.sharding.AbstractMesh((1, 4, 2), sharding.AXES)
    plan = plans.plan(config, run.model_config, mesh, GRID, 40)
    batch = programs.batch_of(plan, plan.sampled)
    assert batch.tokens_BP.sharding.shard_shape((8, 40)) == (2, 40)
    with pytest.raises(
        ValueError, match="config.train.batch_size / mini_batches / micro_batches is 8"
    ):
        abstract_run.make_run(
            config, run.model_config, jax.sharding.AbstractMesh((3, 1, 1), sharding.AXES)
        )
