"""Dynamic sampling: which groups a step keeps, and when it stops asking for more."""

import dataclasses
import functools

import jax.numpy as jnp
import numpy as np
import pytest

from speciarl_jax.experiment import validate_config
from speciarl_jax.experiment.run import prepare
from speciarl_jax.models.prompt_batch import PromptBatch
from speciarl_jax.rl import advantages
from speciarl_jax.rollout.types import Groups, Rollout
from speciarl_jax.training import dynamic_sampling, rl_step
from speciarl_jax.training.dynamic_sampling import add_to_pool, pad, pad_alike
from speciarl_jax.training.state import TrainState
from speciarl_jax.verifiers.category import Category

ANSWERS, TOKENS, PAD = 3, 4, 9


def groups(first, count, prompt=5, features=2, weight=None):
    """Groups whose every array tells which image it belongs to, numbered from `first`."""
    number = np.arange(first, first + count)

    def filled(*shape):
        return np.broadcast_to(number.reshape(-1, *[1] * len(shape)), (count, *shape)).copy()

    weight = np.ones(count, np.float32) if weight is None else weight
    return Groups(
        prompt=PromptBatch(
            patches_BSC=None,
            layout=None,
            tokens_BP=filled(prompt),
            mask_BP=np.ones((count, prompt), bool),
            positions_B3P=filled(3, prompt),
            next_position_B=number,
            image_id_B=number.astype(np.uint32),
            label_index_B=number,
            weight_B=weight,
        ),
        features_BMD=filled(features, 2).astype(np.float32),
        rollout=Rollout(
            tokens_BNT=filled(ANSWERS, TOKENS),
            mask_BNT=np.ones((count, ANSWERS, TOKENS), bool),
            logp_BNT=filled(ANSWERS, TOKENS).astype(np.float32),
        ),
        category_BN=filled(ANSWERS),
        valid_BN=np.ones((count, ANSWERS), bool),
    )


def assert_rows_belong_together(pool):
    """Every array of a row is of the same image, behind whatever pads it."""
    number = np.asarray(pool.prompt.image_id_B)
    for x in (pool.rollout.tokens_BNT, pool.rollout.logp_BNT, pool.category_BN):
        np.testing.assert_array_equal(
            x, np.zeros(x.shape) + number.reshape(-1, *[1] * (x.ndim - 1))
        )
    mask = np.asarray(pool.prompt.mask_BP)
    tokens = np.asarray(pool.prompt.tokens_BP)
    np.testing.assert_array_equal(tokens, np.where(mask, number[:, None], PAD))
    assert (np.diff(mask.astype(int), axis=1) >= 0).all() and mask[:, -1].all()


@pytest.mark.parametrize("seed", range(4))
def test_rounds_fill_the_pool_in_order_with_groups_that_have_signal(seed):
    rng = np.random.default_rng(seed)
    pool, wanted, first = None, [], 1
    for prompt, features in ((5, 2), (7, 2), (4, 3)):
        weight = (rng.random(6) < 0.8).astype(np.float32)
        signal = rng.random(6) < 0.4
        fresh = groups(first, 6, prompt, features, weight)
        if pool is not None:
            pool, fresh = pad_alike(pool, fresh, functools.partial(pad, pad_id=PAD))
        pool = add_to_pool(pool, fresh, jnp.asarray(signal), size=8)
        wanted += [first + i for i in range(6) if signal[i] and weight[i]]
        first += 6
        kept = np.asarray(pool.prompt.weight_B) > 0
        assert kept.sum() == min(len(wanted), 8)
        assert pool.prompt.image_id_B[kept].tolist() == wanted[:8]
        np.testing.assert_array_equal(pool.valid_BN, np.repeat(kept[:, None], ANSWERS, 1))
        assert_rows_belong_together(pool)
    assert pool.prompt.tokens_BP.shape == (8, 7) and pool.features_BMD.shape == (8, 3, 2)
    np.testing.assert_array_equal(
        pool.features_BMD[:, 0, 0], pool.prompt.image_id_B.astype(np.float32)
    )


def test_the_summary_is_of_all_sampled_answers():
    category = jnp.array([[0, 4, 4], [2, 2, -1]])
    valid = jnp.array([[True, True, False], [True, True, True]])
    reward = jnp.array([[0.0, 1, 9], [1, 1, -1]])
    taken = jnp.array([[False] * 3, [True] * 3])
    made = groups(1, 2).replace(category_BN=category, valid_BN=valid)
    bad = jnp.array([[False, True, False], [False] * 3])
    rewarded = rl_step.Rewarded(reward, taken, category, bad)
    found = dynamic_sampling.describe(made, rewarded, jnp.array([True, False]))
    shares = {c: float(found[f"sampled/{c.name.lower()}"]) for c in Category}
    assert shares == {c: pytest.approx((category[valid] == c).mean()) for c in Category}
    assert float(found["sampled/reward"]) == pytest.approx(1 / 3)
    assert float(found["sampled/unjudged"]) == pytest.approx(1 / 6)
    assert float(found["sampled/reward_not_finite"]) == pytest.approx(1 / 5)
    assert float(found["sampled/groups_with_signal"]) == 0.5


@pytest.fixture
def step_of(run, small_config):
    """(categories of each round, max_rounds, batch size) -> metrics, and the keys' numbers."""

    def take(rounds, max_rounds, size, **changes):
        config = small_config(
            train__batch_size=size,
            train__dynamic_sampling__max_rounds=max_rounds,
            train__dynamic_sampling__batch_size=len(rounds[0]),
            **changes,
        )
        small = dataclasses.replace(run, config=config)
        batches = iter([groups(10 * i + 1, len(r)) for i, r in enumerate(rounds)])
        sampled, draws = [], []

        def next_batch():
            sampled.append(next(batches))
            return sampled[-1].prompt

        def judge(state, base, verifier, batch, draw):
            draws.append(int(draw))
            return sampled[-1].replace(category_BN=np.array(rounds[len(draws) - 1])), {}

        def update(state, base, pool):
            reward, taken, *_ = rl_step.reward_groups(pool, state.step, small.algorithm)
            prompt = pool.prompt
            found = {"kept": prompt.weight_B, "who": prompt.image_id_B, "valid": pool.valid_BN}
            return state, found | {"signal": advantages.has_signal(reward, taken)}

        program = dynamic_sampling.train_step(small, judge, lambda found: {}, update)
        state = TrainState(jnp.int32(5), None, None, jnp.int32(0))
        _, metrics = program(state, None, None, next_batch, np.uint32(3))
        return metrics, draws

    return take


FLAT, MIXED = [0, 0, 0], [0, 4, 2]


def test_a_step_samples_until_its_batch_is_full(step_of):
    rounds = [[FLAT, MIXED, FLAT, FLAT], [MIXED, FLAT, MIXED, MIXED], [MIXED] * 4]
    metrics, draws = step_of(rounds, max_rounds=5, size=3)
    assert metrics["who"].tolist() == [2, 11, 13] and metrics["kept"].tolist() == [1, 1, 1]
    assert metrics["dynamic_sampling/rounds"] == 2 and metrics["dynamic_sampling/filled"] == 1
    # Keys of its own for every round of every step.
    assert draws == [15, 16]
    assert metrics["sampled/groups_with_signal"] == 0.5


def test_the_rounds_are_bounded_and_what_is_missing_is_reported(step_of, caplog):
    rounds = [[FLAT, FLAT, MIXED, FLAT], [FLAT] * 4, [MIXED] * 4]
    with caplog.at_level("WARNING"):
        metrics, _ = step_of(rounds, max_rounds=2, size=3)
    assert metrics["kept"].tolist() == [1, 0, 0] and metrics["who"][0] == 3
    assert metrics["valid"].tolist() == [[True] * 3, [False] * 3, [False] * 3]
    assert metrics["dynamic_sampling/rounds"] == 2
    assert metrics["dynamic_sampling/filled"] == pytest.approx(1 / 3)
    assert "2 rounds of 4 images gave 1 of 3 groups" in caplog.text


def test_a_group_is_kept_for_the_verdicts_that_are_rewarded(step_of):
    """Noise makes flat groups differ, and groups that differ flat."""
    rounds = [[FLAT, [3, 4, 4]] * 8]
    metrics, _ = step_of(rounds, max_rounds=1, size=16, label_noise__rate=0.5, label_noise__seed=2)
    kept = metrics["kept"] > 0
    np.testing.assert_array_equal(metrics["signal"], kept)
    odd = metrics["who"][kept] % 2
    assert 0 < odd.sum() < 8 and 0 < (odd == 0).sum() < 8


def test_rounds_need_images_to_sample(small_config):
    config = small_config(train__dynamic_sampling__max_rounds=2)
    assert validate_config.sampled_images(config) == 768
    with pytest.raises(ValueError, match="images and config.train.batch_size is 768; lower"):
        prepare(config)
