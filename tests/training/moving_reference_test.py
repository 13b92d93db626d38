"""A reference policy that moves: what the update compares with, and where it goes."""

import functools
import shutil
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small_run

from configs import load
from speciarl_jax import train
from speciarl_jax.experiment import validate_config
from speciarl_jax.models import lora
from speciarl_jax.runtime.checkpoint import Checkpoints
from speciarl_jax.training import state as state_lib
from speciarl_jax.training import steps

KL = {"loss__kl_coefficient": 0.5, "train__mini_batches": 1}


def noisy(lora, seed):
    """Adapters that differ from fresh ones."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: x + jnp.asarray(rng.normal(0, 0.05, x.shape), x.dtype), lora)


def case_of(policy_folder, **changes):
    """A run, (state, number) -> (state, metrics), and the state before."""
    run = small_run.small_run(policy_folder, **KL | changes)
    optimizer, state, state_sharding = state_lib.start(run)
    step = steps.train_step(run, optimizer, state_sharding)
    take = functools.partial(step, base=run.base, verifier=run.verifier)
    batch = small_run.batch_of(run)
    return types.SimpleNamespace(
        run=run,
        state=state,
        take=lambda state, number=0: take(state, batch=batch, number=np.uint32(number)),
    )


@pytest.mark.parametrize("place", ["loss", "reward"])
def test_fresh_adapters_are_the_base(policy_folder, place):
    """A reference that has not moved gives the step that LoRA off gives."""
    changes = {"loss__kl_in": place}
    base = case_of(policy_folder, **changes)
    own = case_of(policy_folder, **changes, loss__reference_decay=0.5)
    trained = noisy(base.run.lora, 1)
    want, want_metrics = base.take(base.state.replace(lora=jax.tree.map(jnp.copy, trained)))
    got, metrics = own.take(own.state.replace(lora=trained))
    for a, b in zip(jax.tree.leaves(got.lora), jax.tree.leaves(want.lora), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)
    name = "update/kl" if place == "loss" else "reward/kl_penalty"
    assert float(metrics[name]) == pytest.approx(float(want_metrics[name]), rel=1e-4)
    assert float(metrics[name]) > 1e-3


def test_it_follows_the_policy_by_its_share(policy_folder):
    case = case_of(policy_folder, loss__reference_decay=0.75)
    first = small_run.arrays(case.state.reference)
    after, metrics = case.take(case.state)
    assert abs(float(metrics["update/kl"])) < 1e-6  # it begins as the policy
    before, policy = first, small_run.arrays(after.lora)
    found = small_run.arrays(after.reference)
    for name in found:
        want = 0.75 * before[name] + 0.25 * policy[name]
        np.testing.assert_allclose(found[name], want, rtol=1e-5, atol=1e-7)
    assert any(np.abs(found[name] - before[name]).max() > 1e-4 for name in found)


@pytest.mark.slow
def test_without_a_share_of_its_own_it_is_the_policy_before_the_step(policy_folder):
    case, plain = case_of(policy_folder, loss__reference_decay=0.0), case_of(policy_folder)
    state, other = case.state, plain.state
    for number in range(3):
        state, metrics = case.take(state, number)
        other, plain_metrics = plain.take(other, number)
        assert abs(float(metrics["update/kl"])) < 1e-6
    assert float(plain_metrics["update/kl"]) > 1e-5


@pytest.mark.slow
def test_an_encoder_that_learns_has_a_reference_that_follows(policy_folder):
    changes = {"model__lora_targets": lora.TARGETS, "train__micro_batches": 2}
    base = case_of(policy_folder, **changes)
    own = case_of(policy_folder, **changes, loss__reference_decay=0.5)
    trained = noisy(base.run.lora, 2)
    _, want = base.take(base.state.replace(lora=jax.tree.map(jnp.copy, trained)))
    reference = jax.tree.map(jnp.copy, trained)
    _, metrics = own.take(own.state.replace(lora=jax.tree.map(jnp.copy, trained)))
    assert float(metrics["update/kl"]) == pytest.approx(float(want["update/kl"]), rel=1e-3)
    own = case_of(policy_folder, **changes, loss__reference_decay=0.5)
    _, same = own.take(own.state.replace(lora=trained, reference=reference))
    assert abs(float(same["update/kl"])) < 1e-5 < 1e-3 < float(metrics["update/kl"])


def test_a_resumed_run_ends_in_the_same_bits(policy_folder, tmp_path):
    options = KL | {"loss__reference_decay": 0.9, "train__steps": 4}
    options |= {"checkpoint__save_every": 2, "checkpoint__keep": 2}
    run = small_run.small_run(policy_folder, **options)
    train.train(run, tmp_path / "whole")
    shutil.copytree(tmp_path / "whole", tmp_path / "parts")
    shutil.rmtree(tmp_path / "parts" / "checkpoints" / "4")
    train.train(run, tmp_path / "parts")
    found = []
    for name in ("whole", "parts"):
        _, state, _ = state_lib.start(run)
        with Checkpoints(tmp_path / name / "checkpoints", save_every=1, keep=9) as checkpoints:
            state, _ = checkpoints.restore(state, {}, 4)
        assert isinstance(state, state_lib.MovingReferenceState)
        found.append(small_run.arrays(state))
    assert found[0].keys() == found[1].keys()
    for name, array in found[0].items():
        np.testing.assert_array_equal(array, found[1][name], err_msg=name)


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"loss.reference_decay": 1.5}, "reference_decay is 1.5; .* from 0 to 1"),
        ({"loss.kl_coefficient": 0.0}, "0.9, but no KL .* set config.loss.kl_coefficient above"),
        ({"train.objective": "sft"}, "train.objective is 'sft', .* set objective to 'rl'"),
        ({"train.ahead": 1}, "train.ahead is 1, .* set ahead to 0"),
    ],
)
def test_a_reference_that_cannot_move_is_refused(changes, said):
    config = load("base")
    config.loss.reference_decay = 0.9
    config.update_from_flattened_dict(changes)
    with pytest.raises(ValueError, match=said):
        validate_config.check_reference(config)
