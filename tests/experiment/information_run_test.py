"""Credit by information in a run: from the labels of training to the reward of a completion."""

import collections

import jax
import numpy as np
import pytest
import small_run

from speciarl_jax.experiment import make_verifier
from speciarl_jax.experiment.run import evaluation_config, prepare
from speciarl_jax.rollout.types import Groups
from speciarl_jax.training import rl_step, steps
from speciarl_jax.training import state as state_lib
from speciarl_jax.verifiers import parsing
from speciarl_jax.verifiers.category import Category


def config_of(strength=1.0, **changes):
    return small_run.small_config(
        "emoji_tiny",
        **{
            "reward__information__strength": strength,
            "data__options__domains": ("animal", "food"),
            "data__options__image_size": 48,
            "rollout__max_tokens": 24,
            "train__num_length_buckets": 1,
        }
        | changes,
    )


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["share", "bits"])
def test_rewards_are_those_of_a_count_over_the_images_of_training(kind):
    run = prepare(config_of(reward__information__kind=kind, train__fused=False))
    optimizer, state, state_sharding = state_lib.start(run)
    step = steps.programs(run, optimizer, state_sharding)
    batch = small_run.batch_of(run)
    features, rollout = step["rollout"](state.lora, run.base, batch, steps.key_of(run, 1))
    *verdicts, _ = step["verify"](run.verifier, batch, rollout)
    groups = Groups(batch, features, rollout, *verdicts)
    found = rl_step.reward_groups(groups, np.int32(0), run.algorithm)

    source = run.train_source
    ids = collections.Counter(source.describe(i)["label_id"] for i in range(len(source)))
    shares = {label: count / len(source) for label, count in ids.items()}
    entropy = -sum(share * np.log(share) for share in shares.values())
    answers = run.answers(np.asarray(rollout.tokens_BNT), np.asarray(rollout.mask_BNT))
    seen = set()
    for b, group in enumerate(answers):
        best = np.clip(groups.category_BN[b].max(), Category.ABSTAIN, Category.SPECIFIC)
        for n, text in enumerate(group):
            content = parsing.extract(text, tags="think")
            category = groups.category_BN[b, n]
            if content is None:
                assert found.reward_BN[b, n] == -1.0
                continue
            rate = sum(
                share
                for label, share in shares.items()
                if run.labels.category(content, label) >= Category.GENERIC
            )
            np.testing.assert_allclose(groups.base_rate_BN[b, n], rate, atol=1e-5)
            credit = 1 - rate if kind == "share" else min(-np.log(max(rate, 1e-9)) / entropy, 1)
            want = credit if category >= best else 0.0
            np.testing.assert_allclose(found.reward_BN[b, n], want, atol=1e-5)
            seen.add((int(category), round(want, 3)))
    assert len({reward for _, reward in seen}) > 2


@pytest.mark.slow
def test_one_program_and_three_give_the_same_step():
    metrics = []
    for fused in (True, False):
        run = prepare(config_of(train__fused=fused))
        optimizer, state, state_sharding = state_lib.start(run)
        step = steps.train_step(run, optimizer, state_sharding)
        batch = small_run.batch_of(run)
        metrics.append(step(state, run.base, run.verifier, batch, np.uint32(1))[1])
    one, three = (jax.device_get(found) for found in metrics)
    assert one["reward/base_rate"] > 0.1
    for name in ("reward/mean", "reward/base_rate", "update/loss"):
        np.testing.assert_allclose(one[name], three[name], rtol=1e-4, err_msg=name)


def test_a_verifier_that_knows_no_base_rates_is_refused():
    config = config_of(verifier__name="http_judge")
    with pytest.raises(ValueError, match="verifier.name 'http_judge'.*set the strength to 0"):
        make_verifier.with_label_shares(config, object(), np.ones(1), None)


def test_another_verifier_of_evaluations_needs_to_know_none():
    config = config_of(evaluation__verifier__name="http_judge")
    assert evaluation_config(config).reward.information.strength == 0.0
    assert config.reward.information.strength == 1.0
