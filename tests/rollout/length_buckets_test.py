"""Updates on answers cut to the longest of them, and on answers padded to the end."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small_run

from speciarl_jax.experiment import in_graph_verification
from speciarl_jax.rollout import length_buckets, slot_compaction
from speciarl_jax.rollout.types import Groups
from speciarl_jax.runtime import activation_sharding, batching
from speciarl_jax.training import state as state_lib
from speciarl_jax.training import steps


def test_widths_halve():
    assert length_buckets.sizes(2048, 4) == [256, 512, 1024, 2048]
    assert length_buckets.sizes(9, 3) == [3, 5, 9]
    assert length_buckets.sizes(2, 9) == [1, 2] and length_buckets.sizes(7, 1) == [7]


@pytest.mark.parametrize("lengths, width", [([1, 3], 3), ([4], 5), ([5, 2], 5), ([6], 9), ([9], 9)])
def test_the_narrowest_width_that_holds_all_answers_is_run(lengths, width):
    mask_BNT = np.arange(9) < np.array(lengths)[None, :, None]

    def function(x):
        return jnp.int32(x.shape[-1]), jnp.sum(x)

    ran, total = jax.jit(lambda x, mask: length_buckets.at_narrowest(function, x, mask, 3))(
        jnp.where(mask_BNT, 2.0, 0.0), mask_BNT
    )
    assert ran == width and total == 2 * sum(lengths)


@pytest.mark.parametrize("shares", [1, 2])
def test_parts_hold_answers_of_like_length_and_as_many_of_every_device(shares, monkeypatch):
    monkeypatch.setattr(activation_sharding, "parts", lambda size, axis: shares)
    lengths = np.random.default_rng(0).permutation(24)
    mask_BNT = np.arange(24) < np.stack([lengths // 2, lengths], axis=1)[..., None]
    order_SR = length_buckets.by_length(jnp.asarray(mask_BNT), 3)
    whole = {"length": jnp.asarray(lengths), "device": jnp.repeat(jnp.arange(shares), 24 // shares)}
    whole = jax.tree.map(lambda x: slot_compaction.take_images(x, order_SR), whole)
    parts = jax.tree.map(lambda x: np.asarray(batching.split_strided(x, 3)), whole)
    assert sorted(parts["length"].ravel()) == list(range(24))
    for device in range(shares):
        own = [part[parts["device"][i] == device] for i, part in enumerate(parts["length"])]
        assert [len(part) for part in own] == [8 // shares] * 3
        assert max(own[0]) < min(own[1]) and max(own[1]) < min(own[2])
    # The order is undone by sorting it.
    back = slot_compaction.take_images(whole["length"], jnp.argsort(order_SR, axis=1))
    np.testing.assert_array_equal(back, lengths)


def cut_short(rollout, lengths):
    """Answers that end after so many tokens, by image."""
    kept = np.arange(rollout.mask_BNT.shape[-1]) < np.array(lengths)[:, None, None]
    return dataclasses.replace(
        rollout,
        mask_BNT=rollout.mask_BNT & kept,
        logp_BNT=jnp.where(kept, rollout.logp_BNT, 0.0),
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"loss__token_weights": "sequence_mean", "train__mini_batches": 2, "train__ppo_epochs": 2},
        # Both forward passes that are cut: of the update, and before it.
        {"loss__old_logprobs": "recomputed", "train__mini_batches": 2, "loss__kl_in": "reward"},
    ],
    ids=str,
)
def test_an_update_does_not_depend_on_the_number_of_widths(run, small_config, changes):
    """Parts of 8, 2 and 1 tokens at most, 8 being all."""
    batch = small_run.batch_of(run)
    key = jax.random.key(3)
    sample = jax.jit(run.sampler(4, 8))
    features_BMD, rollout = sample(run.lora, run.base, batch, key, np.float32(1), np.float32(1))
    rollout = cut_short(rollout, [8, 2, 1, 2, 2, 2, 1, 8])
    assert rollout.mask_BNT[0].sum(-1).max() > 4
    category_BN, valid_BN = in_graph_verification.verify(run.verifier, batch, rollout)[:2]
    found = []
    for count in (1, 4):
        cuts = {"train__micro_batches": 4 // changes.get("train__mini_batches", 1)}
        config = small_config(train__num_length_buckets=count, **cuts, **changes)
        other = dataclasses.replace(run, config=config)
        optimizer, state, _ = state_lib.start(other)
        learn = jax.jit(steps.stages(other, optimizer).update)
        groups = Groups(batch, features_BMD, rollout, category_BN, valid_BN)
        state, metrics = learn(state, run.base, groups)
        found.append(small_run.arrays({"state": state, "metrics": metrics}))
    want, got = found
    assert want.keys() == got.keys()
    for name, value in want.items():
        np.testing.assert_allclose(got[name], value, rtol=1e-5, atol=2e-6, err_msg=name)
    assert max(np.abs(x).max() for name, x in want.items() if "_b" in name) > 1e-3
