"""Images without labels in a run: judged by nobody or by their own group, and in no metric of
verdicts."""

import dataclasses

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small_run

from speciarl_jax.experiment.make_verifier import label_shares, with_every_label
from speciarl_jax.experiment.run import open_sources, prepare, with_data
from speciarl_jax.models.prompt_batch import UNLABELLED
from speciarl_jax.rollout.types import Groups
from speciarl_jax.training import rl_step, sample_logger, steps
from speciarl_jax.training import state as state_lib
from speciarl_jax.verifiers.base import InGraphVerdicts
from speciarl_jax.verifiers.category import Category

EMOJI = {"split": "reinforcement", "views": 1, "difficulty": "easy", "image_size": 24}
PARTS = {
    "vehicles": {"name": "emoji", "options": {**EMOJI, "domains": ("vehicle",)}},
    "clothes": {
        "name": "emoji",
        "labelled": False,
        "options": {**EMOJI, "domains": ("clothing",)},
    },
}
EVALUATED = {"parts": {"vehicles": PARTS["vehicles"]}}


def config_of(policy_folder, parts=PARTS, evaluated=EVALUATED, **changes):
    return small_run.small_config(
        policy_folder,
        **{
            "data__name": "mixture",
            "data__options": {"parts": parts},
            "evaluation__options": evaluated,
            "loss__kl_unlabelled": 0.5,
            "train__fused": False,
            "train__samples_every": 1,
            "train__num_logged_images": 4,
        }
        | changes,
    )


def test_they_have_no_verdict_and_no_share_in_the_metrics(policy_folder):
    run = prepare(config_of(policy_folder))
    rows = [run.train_source[i] for i in (0, 1, 2, -1 % len(run.train_source))]
    hidden = np.array([bool(row.get("unlabelled")) for row in rows])
    assert hidden.tolist() == [True, True, True, False]  # parts stand in the order of their names
    batch = run.place(run.build(rows, 4))
    assert (np.asarray(batch.label_index_B) == UNLABELLED).tolist() == hidden.tolist()
    optimizer, state, state_sharding = state_lib.start(run)
    step = steps.train_step(run, optimizer, state_sharding)
    state, metrics = step(state, run.base, run.verifier, batch, np.uint32(1))
    assert metrics["verify/unjudged"] == metrics["verify/groups_dropped"] == 0
    assert metrics["data/most_common_label"] == 1.0 and metrics["data/skipped"] == 0
    assert metrics["update/kl_unlabelled"] >= 0
    samples = metrics["samples"]
    assert not np.any(samples.valid_KN[hidden[: len(samples.valid_KN)]])
    shown = sample_logger.rows_of(run, jax.device_get(samples))
    assert [one["label"] == "" for one in shown] == hidden[: len(shown)].tolist()
    assert shown[0]["rewards"] == [None] * len(shown[0]["rewards"])


@flax.struct.dataclass
class TwoNames:
    """Reads two names in the tokens of a random policy: one above both labels, and one of them."""

    share: jax.Array

    def verify(self, tokens_BNT, mask_BNT, label_index_B):
        found = self.verify_in_detail(tokens_BNT, mask_BNT, label_index_B)
        return found.category_BN, found.valid_BN

    def verify_in_detail(self, tokens_BNT, mask_BNT, label_index_B):
        total_BN = jnp.sum(jnp.where(mask_BNT, tokens_BNT, 0), axis=-1)
        answer_BN = (total_BN % 4 > 0).astype(jnp.int32)
        table_AF = jnp.array([[Category.GENERIC] * 2, [Category.SPECIFIC, Category.WRONG]])
        category_BNF = table_AF[answer_BN]
        leaf_B = jnp.clip(label_index_B, 0, 1)
        category_BN = jnp.take_along_axis(category_BNF, leaf_B[:, None, None], axis=2)[..., 0]
        return InGraphVerdicts(
            category_BN=category_BN,
            valid_BN=jnp.broadcast_to(label_index_B[:, None] >= 0, category_BN.shape),
            answer_BN=answer_BN.astype(jnp.uint32) + 1,
            category_BNF=category_BNF.astype(jnp.int8),
        )


def test_a_consensus_is_rewarded_and_changes_no_metric_of_the_others(policy_folder):
    changes = {"rollout__num_rollouts": 6, "rollout__temperature": 1.0}
    run = dataclasses.replace(
        prepare(config_of(policy_folder, reward__consensus_confidence=0.6, **changes)),
        verifier=TwoNames(jnp.zeros(())),
    )
    rows = [run.train_source[i] for i in (0, 1, 2, -1 % len(run.train_source))]
    batch = run.place(run.build(rows, 4))
    optimizer, state, state_sharding = state_lib.start(run)
    rollout = steps.programs(run, optimizer, state_sharding)["rollout"]
    features, sampled = rollout(state.lora, run.base, batch, steps.key_of(run, 1))
    found = []
    for config in (config_of(policy_folder, **changes), run.config):
        one = dataclasses.replace(run, config=config)
        verify = jax.jit(steps.stages(one, optimizer).verify)
        *verdicts, told = verify(run.verifier, batch, sampled)
        made, metrics = rl_step.make_update_batch(
            state.lora,
            run.base,
            Groups(batch, features, sampled, *verdicts),
            state.step,
            algorithm=one.algorithm,
            score=None,
            end_ids=run.end_ids,
        )
        found.append((made, metrics | told))
    (_, plain), (made, metrics) = found
    assert metrics["consensus/agreed"] > 0
    assert metrics["consensus/support"] >= 0.6 and 0 < metrics["consensus/right"] <= 1
    for name in plain.keys() - {"samples"}:
        np.testing.assert_array_equal(metrics[name], plain[name], name)
    assert set(metrics) - set(plain) == {f"consensus/{x}" for x in ("agreed", "support", "right")}
    hidden = np.array([bool(row.get("unlabelled")) for row in rows])
    samples, before = (jax.device_get(one["samples"]) for one in (metrics, plain))
    np.testing.assert_array_equal(samples.category_KN[~hidden], before.category_KN[~hidden])
    assert not np.any(before.valid_KN[hidden])
    agreed = samples.valid_KN[hidden].all(axis=1)
    assert agreed.mean() == pytest.approx(float(metrics["consensus/agreed"]))
    # Who gives the name that six of ten support is rewarded, and who says less is not.
    category, reward = samples.category_KN[hidden][agreed], samples.reward_KN[hidden][agreed]
    best = category.max(axis=1, keepdims=True)
    np.testing.assert_array_equal(reward, category == best)
    # The update learns from them.
    np.testing.assert_array_equal(made.valid_BN[hidden].all(axis=1), agreed)
    differ = (category != best).any(axis=1)
    np.testing.assert_array_equal(made.advantage_BN[hidden][agreed].any(axis=1), differ)


def test_the_base_rates_are_those_of_the_labelled_images(policy_folder):
    run = prepare(config_of(policy_folder))
    alone = config_of(policy_folder, parts=EVALUATED["parts"], loss__kl_unlabelled=0.0)
    known = prepare(alone)
    np.testing.assert_allclose(
        label_shares(run.labels, run.train_source), label_shares(known.labels, known.train_source)
    )


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"loss__kl_unlabelled": 0.0}, r"kl_unlabelled is 0.0.*\['clothes'\]"),
        ({"parts": EVALUATED["parts"]}, r"kl_unlabelled is 0.5.*parts \[\] have no labels"),
        (
            {"loss__kl_unlabelled": 0.0, "reward__consensus_confidence": 0.5}
            | {"parts": EVALUATED["parts"]},
            r"consensus_confidence 0.5.*parts \[\] have no labels",
        ),
        ({"loss__kl_unlabelled": -1.0}, "kl_unlabelled is -1.0"),
        ({"evaluated": {}}, "is evaluated have no labels.*evaluation.options.parts"),
        ({"train__objective": "sft"}, "objective is 'sft'.*set it to 'rl'"),
        (
            {"train__dynamic_sampling": {"max_rounds": 2, "batch_size": 4}},
            "max_rounds is 2.*set it to 0",
        ),
    ],
)
def test_where_nothing_learns_from_them_they_are_refused(run, policy_folder, changes, said):
    config = config_of(policy_folder, **changes)
    opened = dataclasses.replace(run, config=config)
    with pytest.raises(ValueError, match=said):
        with_data(opened, *open_sources(config))


def test_a_verifier_that_cannot_judge_for_all_labels_is_refused(run, policy_folder):
    config = config_of(policy_folder, reward__consensus_confidence=0.5)
    with pytest.raises(ValueError, match="confidence is 0.5.*'taxonomy' does not tell; choose"):
        with_every_label(config, run.verifier)
