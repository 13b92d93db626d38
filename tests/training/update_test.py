"""The update against the equations: whole sequences, one by one, through the plain forward pass."""

import dataclasses
import functools

import algorithms
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from quick_compiler import QUICK
from small_run import batch_of

from speciarl_jax.models.decoder import blocked
from speciarl_jax.models.prompt_batch import UNLABELLED
from speciarl_jax.rl import optimizer as optimizer_lib
from speciarl_jax.rollout.types import Rollout, UpdateBatch
from speciarl_jax.runtime.batching import split_strided
from speciarl_jax.training.state import init_state
from speciarl_jax.training.update import update

IMAGES, ANSWERS, TOKENS = 4, 3, 6
OPTIMIZER = {
    "learning_rate": 0.01,
    "warmup_steps": 0,
    "decay_steps": 0,
    "weight_decay": 0.1,
    "b1": 0.9,
    "b2": 0.99,
    "epsilon": 1e-4,
    "max_grad_norm": 0.05,
}
OPTIONS = {
    "kl_coefficient": 0.3,
    "kl_unlabelled": 0.0,
    "rank_coefficient": 0.0,
    "temperature": 0.8,
    "micro_batches": 1,
    "logprob_chunk": 4,
    "remat": "none",
    "num_length_buckets": 1,
}


@pytest.fixture(scope="module")
def lora(run):
    """Adapters that do something, so that the policy is not its own reference."""
    rng = np.random.default_rng(1)
    return jax.tree.map(lambda x: x + jnp.asarray(rng.normal(0, 0.05, x.shape), x.dtype), run.lora)


@pytest.fixture(scope="module")
def batch(run):
    """Made-up answers of many lengths, some without a verdict."""
    rng = np.random.default_rng(2)
    prompt = jax.tree.map(lambda x: x[:IMAGES], batch_of(run))
    noise = rng.normal(0, 1, prompt.patches_BSC.shape)
    prompt = prompt.replace(patches_BSC=jnp.asarray(noise, jnp.float32))
    policy = nnx.merge(run.graphdef, run.lora, run.base)
    allowed = np.flatnonzero(~np.asarray(run.banned_V))
    length = rng.integers(1, TOKENS + 1, (IMAGES, ANSWERS, 1))
    mask = np.arange(TOKENS) < length
    tokens = np.where(mask, rng.choice(allowed, mask.shape), run.end_ids[0])
    valid = np.ones((IMAGES, ANSWERS), bool)
    valid[0, 1] = valid[2] = False
    return UpdateBatch(
        prompt=prompt,
        features_BMD=policy.encode_images(prompt.patches_BSC, prompt.layout),
        rollout=Rollout(
            tokens_BNT=jnp.asarray(tokens, jnp.int32),
            mask_BNT=jnp.asarray(mask),
            logp_BNT=jnp.asarray(rng.normal(-6.0, 1.5, mask.shape), jnp.float32),
        ),
        advantage_BN=jnp.asarray(np.where(valid, rng.normal(0, 1, valid.shape), 0), jnp.float32),
        valid_BN=jnp.asarray(valid),
    )


@pytest.fixture(scope="module")
def program(run):
    """(optimizer and update options) -> compiled (state, base, batch) -> (state, metrics)."""

    @functools.cache
    def make(graphdef=run.graphdef, **changes):
        adamw = OPTIMIZER | {k: v for k, v in changes.items() if k in OPTIMIZER}
        options = OPTIONS | {k: v for k, v in changes.items() if k in OPTIONS}
        optimizer = optimizer_lib.make(**adamw)
        algorithm = algorithms.made(**options)
        parts = {"graphdef": graphdef, "optimizer": optimizer, "banned_V": run.banned_V}
        step = functools.partial(update, algorithm=algorithm, **parts)
        return functools.partial(init_state, optimizer=optimizer), jax.jit(
            step, compiler_options=QUICK
        )

    return make


def assert_same(got, want, **tolerance):
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(a, b, **tolerance)


def assert_equal(got, want):
    assert_same(got, want, rtol=0, atol=0)


def furthest(got, want):
    pairs = zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True)
    return max(float(jnp.max(jnp.abs(a - b))) for a, b in pairs)


def whole_sequence_loss(run, lora, batch, temperature, kl_coefficient, kl_unlabelled=0.0):
    """Equations of PPO's clipped surrogate, the dual clip and k3, averaged over valid tokens.

    About images without a label, k3 is averaged over tokens of its own.
    """
    policy = nnx.merge(run.graphdef, lora, run.base)
    prompt, rollout = batch.prompt, batch.rollout
    start = prompt.tokens_BP.shape[1]

    def logp_of(n, use_lora):
        tokens = jnp.concatenate([prompt.tokens_BP, rollout.tokens_BNT[:, n]], axis=1)
        mask = jnp.concatenate([prompt.mask_BP, jnp.ones((IMAGES, TOKENS), bool)], axis=1)
        after = prompt.next_position_B[:, None] + jnp.arange(TOKENS)
        after = jnp.broadcast_to(after[:, None], (IMAGES, 3, TOKENS))
        positions = jnp.concatenate([prompt.positions_B3P, after], axis=2).swapaxes(0, 1)
        logits = policy(tokens, positions, mask, batch.features_BMD, use_lora=use_lora)
        logits = jnp.where(run.banned_V, -jnp.inf, logits[:, start - 1 : -1] / temperature)
        logp = logits - jax.scipy.special.logsumexp(logits, axis=-1, keepdims=True)
        return jnp.take_along_axis(logp, rollout.tokens_BNT[:, n][..., None], axis=-1)[..., 0]

    total, count, divergence = 0.0, 0.0, 0.0
    elsewhere, tokens_elsewhere = 0.0, 0.0
    for n in range(ANSWERS):
        taken = rollout.mask_BNT[:, n] & batch.valid_BN[:, n, None]
        logp, reference = logp_of(n, True), jax.lax.stop_gradient(logp_of(n, False))
        advantage = batch.advantage_BN[:, n, None]
        rho = jnp.exp(logp - rollout.logp_BNT[:, n])
        surrogate = jnp.minimum(rho * advantage, jnp.clip(rho, 0.8, 1.2) * advantage)
        surrogate = jnp.where(advantage < 0, jnp.maximum(surrogate, 3.0 * advantage), surrogate)
        # An estimate is cut at 10 nats a token.
        k3 = jnp.minimum(jnp.exp(reference - logp) - (reference - logp) - 1, 10.0)
        total += jnp.sum(jnp.where(taken, -surrogate + kl_coefficient * k3, 0))
        divergence += jnp.sum(jnp.where(taken, k3, 0))
        count += jnp.sum(taken)
        other = rollout.mask_BNT[:, n] & (prompt.label_index_B < 0)[:, None]
        elsewhere += jnp.sum(jnp.where(other, k3, 0))
        tokens_elsewhere += jnp.sum(other)
    elsewhere = elsewhere / jnp.maximum(tokens_elsewhere, 1)
    return total / count + kl_unlabelled * elsewhere, (divergence / count, elsewhere)


def first_adamw_step(param, grad, norm):
    """AdamW's first step: both moments, corrected for their start, are the gradient's own."""
    grad = grad * min(1.0, OPTIMIZER["max_grad_norm"] / norm)
    direction = grad / (np.abs(grad) + OPTIMIZER["epsilon"])
    return param - OPTIMIZER["learning_rate"] * (direction + OPTIMIZER["weight_decay"] * param)


def test_an_update_equals_the_equations_over_whole_sequences(run, lora, batch, program):
    init, step = program()
    state, metrics = step(init(lora), run.base, batch)

    @functools.partial(jax.jit, compiler_options=QUICK)
    def oracle(lora):
        return jax.value_and_grad(
            lambda lora: whole_sequence_loss(run, lora, batch, 0.8, 0.3), has_aux=True
        )(lora)

    (loss, (divergence, _)), grads = oracle(lora)
    leaves = [np.asarray(g, np.float64) for g in jax.tree.leaves(grads)]
    norm = np.sqrt(sum(np.sum(g**2) for g in leaves))
    np.testing.assert_allclose(metrics["update/loss"], loss, rtol=1e-4)
    np.testing.assert_allclose(metrics["update/kl"], divergence, rtol=1e-4)
    np.testing.assert_allclose(metrics["update/grad_norm"], norm, rtol=1e-4)
    want = [
        first_adamw_step(np.asarray(p, np.float64), g, norm)
        for p, g in zip(jax.tree.leaves(lora), leaves, strict=True)
    ]
    assert_same(state.lora, want, rtol=0, atol=2e-5)
    # The oracle's step is large against the tolerance, and both clips were at work.
    assert furthest(state.lora, lora) > 5e-3
    assert metrics["update/clip_frac"] > 0 and norm > OPTIMIZER["max_grad_norm"]
    assert int(state.step) == 1 and int(state.skipped) == 0


def test_the_loss_of_pairs_is_averaged_over_the_groups_of_all_parts(run, lora, batch, program):
    """Two of the four groups have pairs, and each part of two images has one of them or both."""
    one = dataclasses.replace(batch, advantage_BN=batch.advantage_BN.at[1].set(0.5))
    init, step = program()
    _, plain = step(init(lora), run.base, one)
    found = []
    for parts in (1, 2, 4):
        init, step = program(rank_coefficient=0.6, micro_batches=parts)
        found.append(step(init(lora), run.base, one))
    # Temperature 1e9 makes all tokens of the same probability: nothing is ahead of anything.
    init, step = program(rank_coefficient=0.6, temperature=1e9)
    _, level = step(init(lora), run.base, one)
    assert float(level["update/rank_loss"]) == pytest.approx(np.log(2), rel=1e-4)
    want, want_metrics = found[0]
    ranked = float(want_metrics["update/rank_loss"])
    assert float(want_metrics["update/loss"] - plain["update/loss"]) == pytest.approx(0.6 * ranked)
    assert ranked > 0.1 and "update/rank_loss" not in plain
    for got, metrics in found[1:]:
        assert_same(got.lora, want.lora, rtol=0, atol=1e-5)
        for name in ("rank_loss", "loss", "grad_norm"):
            name = f"update/{name}"
            np.testing.assert_allclose(metrics[name], want_metrics[name], rtol=1e-4)
    assert abs(float(want_metrics["update/grad_norm"] / plain["update/grad_norm"]) - 1) > 1e-3


@pytest.fixture(scope="module")
def unlabelled(batch):
    """The same batch, with one image that has no label and so no verdict."""
    label_index_B = batch.prompt.label_index_B.at[2].set(UNLABELLED)
    return dataclasses.replace(batch, prompt=batch.prompt.replace(label_index_B=label_index_B))


def test_the_kl_about_images_without_a_label_has_an_average_of_its_own(
    run, lora, unlabelled, program
):
    loss_of = functools.partial(whole_sequence_loss, run, batch=unlabelled, temperature=0.8)

    @functools.partial(jax.jit, compiler_options=QUICK)
    def oracle(lora):
        return jax.value_and_grad(
            lambda lora: loss_of(lora, kl_coefficient=0.3, kl_unlabelled=0.7), has_aux=True
        )(lora)

    (loss, (divergence, elsewhere)), grads = oracle(lora)
    for parts in (1, 2):
        init, step = program(kl_unlabelled=0.7, micro_batches=parts)
        _, metrics = step(init(lora), run.base, unlabelled)
        np.testing.assert_allclose(metrics["update/loss"], loss, rtol=1e-4)
        np.testing.assert_allclose(metrics["update/kl"], divergence, rtol=1e-4)
        np.testing.assert_allclose(metrics["update/kl_unlabelled"], elsewhere, rtol=1e-4)
        np.testing.assert_allclose(metrics["update/grad_norm"], optax.tree.norm(grads), rtol=1e-4)
    assert elsewhere > 0


def test_without_a_coefficient_an_image_without_a_label_changes_nothing(
    run, lora, batch, unlabelled, program
):
    init, step = program()
    want, got = (step(init(lora), run.base, one) for one in (batch, unlabelled))
    assert_equal(got, want)


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"micro_batches": 2}, marks=pytest.mark.slow),
        {"micro_batches": 4, "remat": "full", "logprob_chunk": 100},
    ],
    ids=["two parts", "four parts, recomputed"],
)
def test_cutting_and_recomputing_change_no_number(run, lora, batch, program, changes):
    init, step = program()
    want, want_metrics = step(init(lora), run.base, batch)
    init, step = program(**changes)
    got, metrics = step(init(lora), run.base, batch)
    assert_same(got, want, rtol=1e-5, atol=1e-5)
    assert metrics.keys() == want_metrics.keys()
    for name, value in metrics.items():
        np.testing.assert_allclose(value, want_metrics[name], rtol=1e-4, atol=1e-5, err_msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["blocked", "splash_interpret", "cudnn_by_xla"])
def test_attention_by_a_kernel_gives_the_same_update(run, lora, batch, program, kind, monkeypatch):
    monkeypatch.setattr(blocked, "LONG", 1)
    monkeypatch.setattr(blocked, "_ROWS", 16)
    policy = nnx.merge(run.graphdef, lora, run.base)
    policy.decoder.attention = policy.visual.attention = kind
    graphdef, *_ = nnx.split(policy, nnx.LoRAParam, ...)
    init, step = program()
    want, want_metrics = step(init(lora), run.base, batch)
    init, step = program(graphdef)
    got, metrics = step(init(lora), run.base, batch)
    assert_same(got.lora, want.lora, rtol=0, atol=1e-5)
    for name, value in metrics.items():
        np.testing.assert_allclose(value, want_metrics[name], rtol=1e-4, atol=1e-5, err_msg=name)
    features = policy.encode_images(batch.prompt.patches_BSC, batch.prompt.layout)
    np.testing.assert_allclose(features, batch.features_BMD, atol=1e-4)


def test_no_advantage_and_no_divergence_give_no_gradient(run, lora, batch, program):
    still = dataclasses.replace(batch, advantage_BN=jnp.zeros_like(batch.advantage_BN))
    init, step = program(kl_coefficient=0.0, weight_decay=0.0)
    state, metrics = step(init(lora), run.base, still)
    assert float(metrics["update/grad_norm"]) == 0.0
    assert "update/kl" not in metrics
    assert_equal(state.lora, lora)
    # The same program does learn from an advantage.
    _, metrics = step(init(lora), run.base, batch)
    assert float(metrics["update/grad_norm"]) > 1e-3


def test_fresh_adapters_do_not_diverge_from_the_reference(run, batch, program):
    still = dataclasses.replace(batch, advantage_BN=jnp.zeros_like(batch.advantage_BN))
    init, step = program()
    _, metrics = step(init(run.lora), run.base, still)
    assert abs(float(metrics["update/kl"])) < 1e-6
    assert float(metrics["update/grad_norm"]) < 1e-5


def test_answers_without_a_verdict_change_nothing(run, lora, batch, program):
    init, step = program()
    want, want_metrics = step(init(lora), run.base, batch)
    rng = np.random.default_rng(3)
    hidden = ~np.asarray(batch.valid_BN)[..., None] & np.ones(TOKENS, bool)
    rollout = batch.rollout
    allowed = np.flatnonzero(~np.asarray(run.banned_V))
    other = Rollout(
        tokens_BNT=jnp.where(hidden, rng.choice(allowed, hidden.shape), rollout.tokens_BNT),
        mask_BNT=jnp.where(hidden, rng.random(hidden.shape) < 0.5, rollout.mask_BNT),
        logp_BNT=jnp.where(hidden, -jnp.inf, rollout.logp_BNT),
    )
    assert (np.asarray(other.tokens_BNT) != np.asarray(rollout.tokens_BNT)).any()
    got, metrics = step(init(lora), run.base, dataclasses.replace(batch, rollout=other))
    assert_same(got, want, rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(metrics["update/loss"], want_metrics["update/loss"], rtol=1e-5)
    # A verdict makes the very same tokens count.
    counted = dataclasses.replace(batch, valid_BN=jnp.ones_like(batch.valid_BN))
    got, _ = step(init(lora), run.base, counted)
    assert furthest(got.lora, want.lora) > 1e-4


def test_an_update_that_is_not_finite_is_left_out_and_counted(run, lora, batch, program):
    init, step = program()
    good, metrics = step(init(lora), run.base, batch)
    assert float(metrics["update/skipped"]) == 0.0
    broken = dataclasses.replace(batch, advantage_BN=batch.advantage_BN.at[1, 1].set(jnp.nan))
    state = good
    for count in (1, 2):
        state, metrics = step(state, run.base, broken)
        assert float(metrics["update/skipped"]) == 1.0
        assert int(state.skipped) == count and int(state.step) == 1 + count
        assert_equal((state.lora, state.opt_state), (good.lora, good.opt_state))
    state, metrics = step(state, run.base, batch)
    assert int(state.skipped) == 0 and float(metrics["update/skipped"]) == 0.0
    want, _ = step(good, run.base, batch)
    assert_equal((state.lora, state.opt_state), (want.lora, want.opt_state))
    assert furthest(state.lora, good.lora) > 1e-4


def test_the_state_holds_the_adapters_and_nothing_of_the_base(run, lora, program):
    init, _ = program()
    state = init(lora)
    adapters = sum(x.size for x in jax.tree.leaves(lora))
    moments = sum(x.size for x in jax.tree.leaves(state.opt_state))
    assert adapters > 0 and 2 * adapters <= moments <= 2 * adapters + 9
    # It may be donated: no two leaves share a buffer, and none is the caller's.
    consume = jax.jit(lambda state: jax.tree.map(lambda x: x + 1, state), donate_argnums=0)
    assert int(consume(state).step) == 1
    assert np.isfinite(jax.tree.leaves(lora)[0]).all()


def test_parts_of_a_batch_are_strided_and_hold_every_image_once():
    parts = split_strided(jnp.arange(12).reshape(6, 2), 3)
    assert parts.shape == (3, 2, 2)
    np.testing.assert_array_equal(parts[:, :, 0] // 2, [[0, 3], [1, 4], [2, 5]])
