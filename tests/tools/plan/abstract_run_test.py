"""Abstract programs take and give what a real run's programs do."""

import jax
import numpy as np
import pytest
import small_run

from speciarl_jax.runtime import sharding
from speciarl_jax.tools.plan import abstract_run
from speciarl_jax.training import state as state_lib
from speciarl_jax.training import steps


def shapes(tree):
    return jax.tree.map(lambda x: (x.shape, x.dtype), tree)


def test_the_arguments_are_those_of_a_real_step(run):
    batch = small_run.batch_of(run)
    grid = (4, 4)
    length = batch.tokens_BP.shape[1]
    found = abstract_run.programs(
        run.config, run.model_config, mesh=run.mesh, grid=grid, prompt_tokens=length
    )
    assert set(found) == {"step", "evaluate"}
    state, base, _, abstract_batch, number = found["step"].arguments
    optimizer, real, where = state_lib.start(run)
    for got, want in ((state, real), (base, run.base), (abstract_batch, batch)):
        assert jax.tree.structure(got) == jax.tree.structure(want)
        assert jax.tree.leaves(shapes(got)) == jax.tree.leaves(shapes(want))
        for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
            assert a.sharding.is_equivalent_to(b.sharding, a.ndim)
    assert (number.shape, number.dtype) == ((), np.uint32)
    # The program itself, on the real run's verifier.
    program = steps.train_step(run, optimizer, where)
    want = jax.eval_shape(program, real, run.base, run.verifier, batch, np.uint32(1))
    got = jax.eval_shape(found["step"].function, *found["step"].arguments)
    assert got == want


@pytest.mark.parametrize("parts", ["three", "dynamic"])
def test_parts_fit_together(run, small_config, parts):
    dynamic = {"train__dynamic_sampling__max_rounds": 2, "train__dynamic_sampling__batch_size": 16}
    config = small_config(train__fused=False, **dynamic if parts == "dynamic" else {})
    found = abstract_run.programs(
        config, run.model_config, mesh=run.mesh, grid=(4, 4), prompt_tokens=40
    )
    names = {"evaluate", "rollout", "verify", "learn"} | ({"keep"} if parts == "dynamic" else set())
    assert set(found) == names
    _, _, prompt, _, rollout, category_BN, _ = found["learn"].arguments
    assert rollout.tokens_BNT.shape == (8, 4, 8) and category_BN.shape == (8, 4)
    assert prompt.tokens_BP.shape == (8, 40)
    state, metrics = jax.eval_shape(found["learn"].function, *found["learn"].arguments)
    assert shapes(state) == shapes(found["learn"].arguments[0])
    assert metrics["update/loss"].shape == ()


def test_a_mesh_of_devices_that_are_not_here_will_do(run, small_config):
    config = small_config()
    mesh = jax.sharding.AbstractMesh((1, 4, 2), sharding.AXES)
    found = abstract_run.programs(
        config, run.model_config, mesh=mesh, grid=(4, 4), prompt_tokens=40
    )
    batch = found["step"].arguments[3]
    assert batch.tokens_BP.sharding.shard_shape((8, 40)) == (2, 40)
    with pytest.raises(
        ValueError, match="config.train.batch_size / mini_batches / micro_batches is 8"
    ):
        abstract_run.make_run(
            config, run.model_config, jax.sharding.AbstractMesh((3, 1, 1), sharding.AXES)
        )


def test_a_verifier_that_needs_more_is_refused(run, small_config):
    config = small_config(verifier__name="http_judge")
    with pytest.raises(ValueError, match="'http_judge', which needs weights or a server"):
        abstract_run.programs(
            config, run.model_config, mesh=run.mesh, grid=(4, 4), prompt_tokens=40
        )
