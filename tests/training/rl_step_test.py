"""One step of the method: its metrics by hand, its mini-batches one after the other."""

import dataclasses
import functools

import algorithms
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from quick_compiler import QUICK
from small_run import batch_of

from speciarl_jax.experiment import in_graph_verification
from speciarl_jax.rl.rewards import best_prediction, brier
from speciarl_jax.rollout.types import Groups, Rollout
from speciarl_jax.training import rl_step, steps
from speciarl_jax.training import state as state_lib
from speciarl_jax.verifiers.category import Category

IMAGES, ANSWERS, TOKENS = 8, 4, 8
NAMES = ["unparsed", "wrong", "abstain", "generic", "less_specific", "specific", "more_specific"]


def made_up(seed, run, images=IMAGES):
    """Answers, categories and validity of random content."""
    rng = np.random.default_rng(seed)
    mask = np.arange(TOKENS) < rng.integers(1, TOKENS + 1, (images, ANSWERS, 1))
    allowed = np.flatnonzero(~np.asarray(run.banned_V))
    rollout = Rollout(
        tokens_BNT=rng.choice(allowed, mask.shape).astype(np.int32),
        mask_BNT=mask,
        logp_BNT=rng.normal(-5, 1, mask.shape).astype(np.float32),
    )
    category = rng.integers(-1, 6, (images, ANSWERS)).astype(np.int32)
    category[0] = Category.WRONG
    return rollout, category, rng.random(category.shape) < 0.8


def bar_reward(category):
    """The reward of a group, written from the paper: 1 from the best category of the group on."""
    best = min(max(category), Category.SPECIFIC)
    bar = Category.ABSTAIN if best <= Category.WRONG else best
    return [-1.0 if c == Category.UNPARSED else float(c >= bar) for c in category]


def update_batch(run, batch, rollout, category, valid, step=0, end_ids=None, **changes):
    """The update batch and the metrics of groups with these verdicts."""
    features = np.zeros((IMAGES, 1, 1))
    groups = Groups(batch, features, rollout, jnp.asarray(category), jnp.asarray(valid))
    return rl_step.make_update_batch(
        {},
        None,
        groups,
        jnp.int32(step),
        algorithm=algorithms.made(**{"min_judged_fraction": 0.0} | changes),
        score=None,
        end_ids=end_ids or run.end_ids,
    )


@pytest.mark.parametrize("seed", range(4))
def test_metrics_of_a_step_equal_a_count_by_hand(run, seed):
    rollout, category, valid = made_up(seed, run)
    (eos,) = run.end_ids
    # One answer ends with the last token that it may have, one is cut short.
    rollout.mask_BNT[1, :2], valid[1, :2] = True, True
    rollout.tokens_BNT[1, :2, -1] = eos, (eos + 1) % 400
    weight = np.array([1] * 6 + [0] * 2, np.float32)
    valid &= weight[:, None] > 0
    batch = batch_of(run).replace(weight_B=weight)

    metrics = update_batch(run, batch, rollout, category, valid)[1]
    judged, rewards, lengths, cut, flat = [], [], [], [], 0
    for b in range(6):
        who = np.flatnonzero(valid[b])
        reward = bar_reward(category[b, who]) if len(who) else []
        flat += len(set(reward)) < 2
        rewards += reward
        judged += category[b, who].tolist()
        lengths += rollout.mask_BNT[b, who].sum(axis=-1).tolist()
        cut += [rollout.mask_BNT[b, n, -1] and rollout.tokens_BNT[b, n, -1] != eos for n in who]
    want = {f"verify/{name}": judged.count(i - 1) / len(judged) for i, name in enumerate(NAMES)}
    want |= {
        "verify/unjudged": 1 - len(judged) / (6 * ANSWERS),
        "verify/groups_dropped": sum(not valid[b].any() for b in range(6)) / 6,
        "reward/mean": np.mean(rewards),
        "reward/not_finite": 0.0,
        "reward/zero_std_groups": flat / 6,
        "data/skipped": IMAGES - 6,
        "data/most_common_label": np.bincount(batch.label_index_B[:6]).max() / 6,
        "rollout/completion_length": np.mean(lengths),
        "rollout/truncated": np.mean(cut),
    }
    assert metrics.keys() == want.keys()
    for name, value in want.items():
        np.testing.assert_allclose(metrics[name], value, rtol=1e-5, atol=1e-6, err_msg=name)
    assert flat >= 1 and 0 < want["verify/unjudged"] < 1
    assert 0 < sum(cut) < lengths.count(TOKENS)


def test_a_step_without_a_verdict_has_finite_metrics(run):
    rollout, category, _ = made_up(0, run)
    nobody, weight = np.zeros((IMAGES, ANSWERS), bool), np.ones(IMAGES, np.float32)
    zeros = jnp.zeros((IMAGES, ANSWERS))
    batch = batch_of(run).replace(weight_B=weight)
    groups = Groups(batch, None, rollout, jnp.asarray(category), nobody)
    metrics = rl_step.describe(groups, nobody, zeros, zeros, end_ids=(0,))
    assert all(np.isfinite(value) for value in metrics.values())
    assert float(metrics["verify/unjudged"]) == 1.0
    assert float(metrics["reward/zero_std_groups"]) == 1.0


def test_a_row_that_pads_the_batch_has_no_verdict(run):
    rollout, _, _ = made_up(0, run)
    batch = batch_of(run).replace(weight_B=np.array([1] * 7 + [0], np.float32))
    category, valid = in_graph_verification.verify(run.verifier, batch, rollout)[:2]
    assert valid[:7].all() and not valid[7].any()
    assert len(np.unique(category)) > 4


@pytest.fixture(scope="module")
def features(run):
    batch, policy = batch_of(run), nnx.merge(run.graphdef, run.lora, run.base)
    encode = jax.jit(policy.encode_images, compiler_options=QUICK)
    return encode(batch.patches_BSC, batch.layout)


@pytest.fixture(scope="module")
def learner(run):
    """The state before the first update, and the configured update of groups."""
    optimizer, state, _ = state_lib.start(run)
    return state, jax.jit(steps.stages(run, optimizer).update, compiler_options=QUICK)


def pick(tree, which):
    return jax.tree.map(lambda x: jnp.asarray(x)[which], tree)


def largest_difference(got, want):
    pairs = zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True)
    return max(float(jnp.max(jnp.abs(a - b))) for a, b in pairs)


def test_mini_batches_are_updates_one_after_the_other(run, features, learner, small_config):
    state, learn = learner
    twice = dataclasses.replace(run, config=small_config(train__mini_batches=2))
    update = steps.stages(twice, state_lib.start(run)[0]).update
    program = jax.jit(update, compiler_options=QUICK)
    rollout, category, valid = made_up(1, run)
    groups = Groups(batch_of(run), features, rollout, category, valid)
    got, got_metrics = program(state, run.base, groups)
    want, losses = state, []
    for part in (slice(0, None, 2), slice(1, None, 2)):
        # Groups lie within a part, so their advantages are the same in either way.
        want, metrics = learn(want, run.base, pick(groups, part))
        losses.append(float(metrics["update/loss"]))
    assert largest_difference(got.lora, want.lora) < 1e-5
    assert int(got.step) == int(want.step) == 2
    np.testing.assert_allclose(got_metrics["update/loss"], np.mean(losses), rtol=1e-4, atol=1e-6)
    assert float(got_metrics["update/skipped_in_a_row"]) == 0.0
    at_once, _ = learn(state, run.base, groups)
    assert largest_difference(at_once.lora, got.lora) > 1e-3


@pytest.mark.slow
def test_padding_rows_take_no_part_in_learning(run, features, learner):
    state, learn = learner
    batch = batch_of(run).replace(weight_B=np.array([1] * 6 + [0] * 2, np.float32))
    rollout, category, valid = made_up(2, run)
    valid &= np.asarray(batch.weight_B)[:, None] > 0
    groups = Groups(batch, features, rollout, category, valid)
    got, got_metrics = learn(state, run.base, groups)
    want, want_metrics = learn(state, run.base, pick(groups, slice(0, 6)))
    assert largest_difference(got.lora, want.lora) < 1e-5
    assert largest_difference(got.lora, state.lora) > 1e-3
    assert got_metrics.pop("data/skipped") == 2 and want_metrics.pop("data/skipped") == 0
    for name, value in want_metrics.items():
        np.testing.assert_allclose(got_metrics[name], value, rtol=1e-4, atol=1e-6, err_msg=name)
    other, other_category, _ = made_up(3, run)
    six = np.arange(IMAGES) < 6
    mixed = jax.tree.map(
        lambda a, b: np.where(six.reshape(-1, *[1] * (a.ndim - 1)), a, b), rollout, other
    )
    mixed_category = np.where(six[:, None], category, other_category)
    got, _ = learn(state, run.base, groups.replace(rollout=mixed, category_BN=mixed_category))
    assert largest_difference(got.lora, want.lora) < 1e-5


def test_noise_moves_what_is_rewarded_and_not_what_is_reported(run):
    rollout, category, _ = made_up(4, run)
    everyone = np.ones(category.shape, bool)
    seen = []

    def reward(category_BN, valid_BN):
        seen.append(np.asarray(category_BN))
        return best_prediction.reward(category_BN, valid_BN)

    def noise(category_BN, image_id_B, step):
        assert image_id_B.shape == (IMAGES,) and int(step) == 7
        return category_BN.at[0].set(Category.ABSTAIN)

    metrics = [
        update_batch(
            run, batch_of(run), rollout, category, everyone, step=7, reward=reward, noise=chosen
        )[1]
        for chosen in (None, noise)
    ]
    np.testing.assert_array_equal(seen[0], category)
    np.testing.assert_array_equal(seen[1][1:], category[1:])
    assert (seen[1][0] == Category.ABSTAIN).all()
    # The first group is wrong throughout, so every verdict of it moved.
    assert float(metrics[1].pop("verify/noise")) == pytest.approx(1 / IMAGES)
    for name in metrics[0]:
        if name.startswith("verify/"):
            assert metrics[0][name] == metrics[1][name]
    assert metrics[1]["reward/mean"] > metrics[0]["reward/mean"]


def test_what_a_completion_claims_is_taken_from_its_reward(run):
    rollout, category, _ = made_up(6, run)
    everyone = np.ones(category.shape, bool)
    rollout.logp_BNT[:] /= 20
    penalty = functools.partial(brier.penalty, weight=0.5)
    plain, metrics = (
        update_batch(run, batch_of(run), rollout, category, everyone, brier=chosen)[1]
        for chosen in (None, penalty)
    )
    rewarded = np.array([bar_reward(group) for group in category]) > 0
    claimed = np.exp(np.where(rollout.mask_BNT, rollout.logp_BNT, 0).sum(-1))
    want = 0.5 * np.mean((claimed - rewarded) ** 2)
    assert float(metrics["reward/brier_penalty"]) == pytest.approx(want, rel=1e-4)
    lost = float(plain["reward/mean"] - metrics["reward/mean"])
    assert lost == pytest.approx(want, rel=1e-4) and want > 0.05


def test_groups_with_too_few_verdicts_leave_the_update(run):
    rollout, category, _ = made_up(5, run)
    valid = np.ones((IMAGES, ANSWERS), bool)
    valid[1, 0], valid[2, :3], valid[3] = False, False, False
    dropped = {0.0: [3], 0.25: [3], 0.5: [2, 3], 0.75: [2, 3], 1.0: [1, 2, 3]}
    batch = batch_of(run)
    for share, groups in dropped.items():
        found, metrics = update_batch(
            run, batch, rollout, category, valid, min_judged_fraction=share
        )
        want = valid.copy()
        want[groups] = False
        np.testing.assert_array_equal(found.valid_BN, want)
        assert float(metrics["verify/groups_dropped"]) == len(groups) / IMAGES
        assert float(metrics["verify/unjudged"]) == pytest.approx(8 / 32)
        # What left is as if it had never been judged.
        _, alone = update_batch(run, batch, rollout, category, want, min_judged_fraction=0.0)
        assert float(metrics["reward/mean"]) == pytest.approx(float(alone["reward/mean"]))


def test_the_share_of_a_group_is_rounded_up_and_no_further():
    valid = jnp.arange(10)[None] < jnp.arange(11)[:, None]
    for share, fewest in ((0.0, 0), (0.1, 1), (0.3, 3), (0.31, 4), (0.7, 7), (1.0, 10)):
        kept = np.asarray(rl_step.judged_groups(valid, share))
        np.testing.assert_array_equal(kept, valid & (np.arange(11)[:, None] >= fewest))


def test_an_answer_that_ends_with_any_of_several_tokens_is_not_truncated(run):
    rollout, category, valid = made_up(0, run)
    valid[:] = rollout.mask_BNT[:] = True
    rollout.tokens_BNT[..., -1] = 9
    rollout.tokens_BNT[0, :2, -1] = 7, 8
    batch = batch_of(run)
    for ends, cut in (((7,), 1), ((7, 8), 2), ((8, 7, 9), IMAGES * ANSWERS)):
        metrics = update_batch(run, batch, rollout, category, valid, end_ids=ends)[1]
        want = 1 - cut / (IMAGES * ANSWERS)
        np.testing.assert_allclose(metrics["rollout/truncated"], want, rtol=1e-6)


def broken(category, valid, bad=float("nan")):
    """A reward that is not finite for generic answers."""
    fine = best_prediction.reward(category, valid)
    return jnp.where(category == Category.GENERIC, bad, fine)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("share", [0.0, 1.0])
def test_a_reward_that_is_not_finite_counts_as_no_verdict(run, bad, share):
    rollout, category, valid = made_up(3, run)
    valid[:] = True
    generic = category == Category.GENERIC
    assert 0 < generic.any(axis=1).sum() < IMAGES
    batch, own = batch_of(run), functools.partial(broken, bad=bad)
    found, metrics = update_batch(
        run, batch, rollout, category, valid, reward=own, min_judged_fraction=share
    )
    assert float(metrics["reward/not_finite"]) == pytest.approx(generic.mean())
    # Of a group that must be judged as a whole nothing is left.
    want = ~generic & (not share or ~generic.any(axis=1, keepdims=True))
    np.testing.assert_array_equal(found.valid_BN, want)
    assert np.isfinite(found.advantage_BN).all() and np.isfinite(metrics["reward/mean"])
    assert not np.asarray(found.advantage_BN)[~want].any()


def test_a_cost_that_is_not_finite_counts_as_no_verdict(run):
    rollout, category, valid = made_up(4, run)
    valid[:] = True
    length = rollout.mask_BNT.sum(axis=-1)
    found, metrics = update_batch(
        run,
        batch_of(run),
        rollout,
        category,
        valid,
        overlong=lambda length_BN: jnp.where(length_BN == TOKENS, jnp.inf, 0.0),
    )
    np.testing.assert_array_equal(found.valid_BN, length < TOKENS)
    assert float(metrics["reward/not_finite"]) == pytest.approx((length == TOKENS).mean())
    assert np.isfinite(metrics["reward/mean"]) and np.isfinite(metrics["reward/overlong_penalty"])
