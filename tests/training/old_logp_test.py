"""Old log-probabilities by sampler and trainer, several epochs, and KL in the reward."""

import dataclasses
import functools
import math

import algorithms
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from quick_compiler import QUICK
from small_run import batch_of

from speciarl_jax.rl.losses import importance, kl, token_weights
from speciarl_jax.rl.optimizer import Optimizer
from speciarl_jax.rollout import rescore
from speciarl_jax.rollout.types import Groups, UpdateBatch
from speciarl_jax.training import rl_step, update
from speciarl_jax.training.state import init_state


@pytest.fixture(scope="module")
def lora(run):
    """Adapters that do something, so that the policy is not its own reference."""
    rng = np.random.default_rng(1)
    return jax.tree.map(lambda x: x + jnp.asarray(rng.normal(0, 0.05, x.shape), x.dtype), run.lora)


@pytest.fixture(scope="module")
def answers(run, lora):
    """Prompts, features and answers that the policy sampled."""
    prompt = batch_of(run)
    sample = jax.jit(run.sampler(3, 6), compiler_options=QUICK)
    one = np.float32(1)
    return prompt, *sample(lora, run.base, prompt, jax.random.key(0), one, one)


@pytest.fixture(scope="module")
def score(run, lora, answers):
    """(use_lora, parts) -> log-probabilities by the trainer."""

    @functools.cache
    def score(use_lora, parts=2):
        options = {"use_lora": use_lora, "parts": parts, "chunk_size": 4}
        program = functools.partial(
            rescore.answer_logp, graphdef=run.graphdef, banned_V=run.banned_V, **options
        )
        return jax.jit(program, compiler_options=QUICK)(lora, run.base, *answers)

    return score


def test_the_trainer_scores_what_the_sampler_sampled(answers, score):
    rollout = answers[2]
    mask = np.asarray(rollout.mask_BNT)
    trainer, reference = np.asarray(score(True)), np.asarray(score(False))
    np.testing.assert_allclose(trainer[mask], rollout.logp_BNT[mask], atol=1e-4)
    np.testing.assert_allclose(score(True, 4), trainer, atol=1e-5)
    assert np.abs(trainer - reference)[mask].max() > 0.05


@pytest.fixture(scope="module")
def batch(answers):
    """An update's batch whose sampler was far from the trainer."""
    prompt, features, rollout = answers
    rng = np.random.default_rng(2)
    noise = rng.normal(0, 0.6, rollout.logp_BNT.shape).astype(np.float32)
    shape = rollout.tokens_BNT.shape[:2]
    return UpdateBatch(
        prompt=prompt,
        features_BMD=features,
        rollout=rollout.replace(logp_BNT=rollout.logp_BNT + noise),
        advantage_BN=jnp.asarray(rng.normal(0, 1, shape), jnp.float32),
        valid_BN=jnp.ones(shape, bool),
    )


@pytest.fixture(scope="module")
def gradient_of(run, lora):
    """(batch, options) -> what gradient ascent adds to the adapters, and metrics."""

    def gradient(batch, **changes):
        optimizer = Optimizer(*optax.sgd(1.0), lambda state: 1.0, math.inf)
        options = {
            "kl_coefficient": 0.0,
            "micro_batches": 2,
            "logprob_chunk": 8,
            "remat": "none",
            "num_length_buckets": 1,
        }
        program = functools.partial(
            update.update,
            algorithm=algorithms.made(**options | changes),
            graphdef=run.graphdef,
            optimizer=optimizer,
            banned_V=run.banned_V,
        )
        state, metrics = jax.jit(program, compiler_options=QUICK)(
            init_state(lora, optimizer), run.base, batch
        )
        return jax.tree.map(jnp.subtract, lora, state.lora), metrics

    return gradient


def largest(a, b):
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return max(float(jnp.max(jnp.abs(x - y))) for x, y in pairs)


@pytest.mark.slow
def test_the_trainers_ratio_does_not_see_the_sampler(batch, score, gradient_of):
    trainer = score(True)
    honest = batch.rollout.replace(logp_BNT=trainer)
    want, want_metrics = gradient_of(dataclasses.replace(batch, rollout=honest))
    known = dataclasses.replace(batch, old_logp_BNT=trainer)
    for case in (known, batch):
        got, metrics = gradient_of(case, old_logprobs="recomputed")
        assert largest(got, want) < 1e-5
        assert float(metrics["update/ratio"]) == pytest.approx(1, abs=1e-5)
        mask = np.asarray(batch.rollout.mask_BNT)
        gap = np.abs(np.asarray(trainer) - np.asarray(batch.rollout.logp_BNT))[mask].mean()
        assert float(metrics["update/sampler_gap"]) == pytest.approx(gap, rel=1e-3)
    assert float(want_metrics["update/sampler_gap"]) < 1e-4
    # Against the sampler's the same answers teach something else.
    other, _ = gradient_of(batch)
    assert largest(other, want) > 1e-3


@pytest.mark.slow
def test_importance_weights_multiply_the_loss_of_a_token(batch, score, gradient_of):
    ratio = np.exp(np.asarray(score(True)) - np.asarray(batch.rollout.logp_BNT))
    weight = jnp.asarray(np.minimum(ratio, 1.5))

    def weighted(mask_BNT):
        return token_weights.token_mean(mask_BNT) * weight

    want, _ = gradient_of(batch, old_logprobs="recomputed", token_weights=weighted)
    got, metrics = gradient_of(batch, old_logprobs="recomputed", tis_cap=1.5)
    assert largest(got, want) < 1e-5
    mask = np.asarray(batch.rollout.mask_BNT)
    kept = np.asarray(weight)[mask]
    assert float(metrics["update/importance"]) == pytest.approx(kept.mean(), rel=1e-3)
    capped = float(metrics["update/importance_capped"])
    assert capped == pytest.approx((ratio[mask] >= 1.5).mean(), abs=0.02) and 0 < capped < 1


def test_a_rollouts_weight_and_its_mask_multiply_the_loss(batch, score, gradient_of):
    mask = np.asarray(batch.rollout.mask_BNT)
    gap = np.where(mask, np.asarray(score(True)) - np.asarray(batch.rollout.logp_BNT), 0)
    total = gap.sum(-1, keepdims=True)
    mean = total / mask.sum(-1, keepdims=True)
    kept = np.broadcast_to(mask & (np.abs(mean) < 0.2), mask.shape)
    weight = jnp.asarray(np.where(kept, np.minimum(np.exp(total), 1.5), 0))
    bounds = {"of": "geometric", "low": math.exp(-0.2), "high": math.exp(0.2)}

    def weighted(mask_BNT):
        return token_weights.token_mean(mask_BNT) * weight

    want, _ = gradient_of(batch, old_logprobs="recomputed", token_weights=weighted)
    got, metrics = gradient_of(
        batch,
        old_logprobs="recomputed",
        tis_cap=1.5,
        tis_level="sequence",
        kept=functools.partial(importance.kept, **bounds),
    )
    assert largest(got, want) < 1e-5
    share = (~kept)[mask].mean()
    assert float(metrics["update/mismatch_masked"]) == pytest.approx(share, abs=1e-6)
    capped = (np.broadcast_to(total, mask.shape)[mask] >= math.log(1.5)).mean()
    assert float(metrics["update/importance_capped"]) == pytest.approx(capped, abs=1e-6)
    assert 0 < share < 1 and 0 < capped < 1


def test_the_loss_rewards_entropy_and_holds_the_kl_at_its_scheduled_weight(batch, gradient_of):
    still = dataclasses.replace(batch, advantage_BN=jnp.zeros_like(batch.advantage_BN))
    _, metrics = gradient_of(
        still, entropy_coefficient=0.5, kl_coefficient=0.4, kl_schedule=lambda step: 0.25 + step
    )
    found = {name: float(metrics[f"update/{name}"]) for name in ("loss", "kl", "entropy")}
    assert found["loss"] == pytest.approx(0.1 * found["kl"] - 0.5 * found["entropy"])
    assert float(metrics["update/kl_coefficient"]) == pytest.approx(0.1)
    assert min(found["kl"], found["entropy"], float(metrics["update/grad_norm"])) > 1e-3


def test_every_pass_is_held_to_the_policy_of_the_steps_start(run, lora, answers, score):
    """Several epochs over two mini-batches, with an update that only counts and looks."""
    prompt, features, rollout = answers
    seen = []

    def watch(state, base, part):
        seen.append(part.old_logp_BNT.shape)
        total = jnp.sum(part.old_logp_BNT)
        state = dataclasses.replace(state, step=state.step + 1)
        return state, {
            "update/total": total,
            "update/sampler_gap": state.step.astype(jnp.float32),
            "update/step": state.step.astype(jnp.float32),
        }

    whole = UpdateBatch(prompt, features, rollout, None, None, old_logp_BNT=score(True))
    whole = dataclasses.replace(
        whole, advantage_BN=jnp.zeros((8, 3)), valid_BN=jnp.ones((8, 3), bool)
    )
    state = init_state(lora, optax.sgd(1.0))
    twice = algorithms.made(mini_batches=2, ppo_epochs=3)
    state, metrics = update.update_on_all(state, None, whole, watch, twice)
    assert int(state.step) == 6 and set(seen) == {(4, 3, 6)}
    assert float(metrics["update/total"]) == pytest.approx(float(score(True).sum()) / 2, rel=1e-5)
    # Means over the updates, but the mismatch, which only the first one sees unspoilt.
    assert float(metrics["update/step"]) == 3.5 and float(metrics["update/sampler_gap"]) == 1


@pytest.mark.parametrize("name", kl.ESTIMATORS)
def test_kl_in_the_reward_is_summed_over_the_completion(run, lora, answers, score, name):
    prompt, features, rollout = answers
    free = {"reward": lambda category_BN, valid_BN: 0.0 * category_BN, "kl_coefficient": 0.5}
    if name == "k2":
        # Half of it, by a schedule.
        free |= {"kl_coefficient": 1.0, "kl_schedule": lambda step: 0.5 + step}
    algorithm = algorithms.made(kl_in="reward", kl=getattr(kl, name), **free)
    shape = rollout.tokens_BNT.shape[:2]
    groups = Groups(prompt, features, rollout, jnp.zeros(shape, int), jnp.ones(shape, bool))
    # The rollouts' own log-probabilities stand in for the trainer's, which they equal.
    rollout = groups.rollout.replace(logp_BNT=score(True))
    seen = []
    algorithm = dataclasses.replace(
        algorithm, advantages=lambda reward_BN, valid_BN: seen.append(reward_BN) or reward_BN
    )
    rl_step.make_update_batch(
        lora,
        run.base,
        groups.replace(rollout=rollout),
        jnp.int32(0),
        algorithm=algorithm,
        score=lambda *_, use_lora, sampled: score(use_lora),
        end_ids=run.end_ids,
    )
    mask = np.asarray(rollout.mask_BNT)
    x = np.asarray(score(True), np.float64) - np.asarray(score(False))
    each = {"k1": x, "k2": x**2 / 2, "k3": np.exp(-x) - 1 + x}[name]
    want = -0.5 * np.where(mask, each, 0).sum(-1)
    np.testing.assert_allclose(seen[0], want, rtol=1e-3, atol=1e-4)
    # It is in one place only.
    assert algorithm.kl_in_loss == 0.0 and algorithm.kl_in_reward == algorithm.kl_coefficient
