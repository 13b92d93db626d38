"""A policy whose frozen kernels are int8 is read, samples, and learns nearly what it would have."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import qwix
from flax import nnx
from small_run import batch_of, small_run

from speciarl_jax.models import int8
from speciarl_jax.models.checkpoints import hf_checkpoint
from speciarl_jax.models.decoder.decoder import LINEARS
from speciarl_jax.rollout.types import Groups
from speciarl_jax.training import state as state_lib
from speciarl_jax.training import steps

CATEGORY_BN = np.array([[4, 0, 2, 5], [0, 0, 1, 3], [5, 4, 4, 0], [3, 2, 0, 0]] * 2, np.int32)


@pytest.fixture(scope="module")
def run8(policy_folder):
    return small_run(policy_folder, model__base_weights="int8", rollout__merge_lora=False)


def test_kernels_are_rounded_as_they_are_read_and_nothing_else_is(run, run8):
    base, base8 = (dict(nnx.to_flat_state(r.base)) for r in (run, run8))
    assert base.keys() == base8.keys()
    rounded = set()
    for path, want in base.items():
        got, want = base8[path].get_value(), want.get_value()
        if isinstance(got, qwix.QArray):
            rounded.add(path[-1])
            want = int8.quantize(want)
            assert jax.tree.structure(got) == jax.tree.structure(want)
            np.testing.assert_allclose(got.scale, want.scale, rtol=1e-6)
            np.testing.assert_allclose(got.qvalue, want.qvalue, rtol=0, atol=1)
        else:
            np.testing.assert_array_equal(got, want)
    assert rounded == set(LINEARS)


@pytest.mark.slow
def test_it_samples_and_learns_nearly_the_same(run, run8):
    """The answers of the int8 policy teach both; their gradients point the same way."""
    batch = batch_of(run)
    sample = jax.jit(run8.sampler(4, 8))
    key, one = jax.random.key(0), np.float32(1)
    features, rollout = sample(run8.lora, run8.base, batch, key, one, one)
    assert len(np.unique(rollout.tokens_BNT)) > 10 and np.isfinite(rollout.logp_BNT).all()
    moved, metrics = [], []
    for r in (run, run8):
        optimizer, state, _ = state_lib.start(r)
        valid = jnp.ones(CATEGORY_BN.shape, bool)
        learn = jax.jit(steps.stages(r, optimizer).update)
        after, found = learn(state, r.base, Groups(batch, features, rollout, CATEGORY_BN, valid))
        before = jax.tree.leaves(state.lora)
        pairs = zip(jax.tree.leaves(after.lora), before, strict=True)
        moved.append(np.concatenate([np.ravel(a - b) for a, b in pairs]))
        metrics.append(found)
    cosine = moved[0] @ moved[1] / np.linalg.norm(moved[0]) / np.linalg.norm(moved[1])
    assert 0.95 < cosine < 1 - 1e-6, cosine
    norms = [m["update/grad_norm"] for m in metrics]
    np.testing.assert_allclose(norms[1], norms[0], rtol=0.05)


def test_int8_weights_are_not_written(run8, tmp_path):
    policy = nnx.merge(run8.graphdef, run8.lora, run8.base)
    with pytest.raises(ValueError, match="config.model.base_weights = 'param_dtype'"):
        hf_checkpoint.save(tmp_path, run8.model_config, policy)
    assert not list(tmp_path.iterdir())
