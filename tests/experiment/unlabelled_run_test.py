"""Images without labels in a run: judged by nobody, and counted in no metric of verdicts."""

import dataclasses

import jax
import numpy as np
import pytest
import small_run

from speciarl_jax.experiment.make_verifier import label_shares
from speciarl_jax.experiment.run import open_sources, prepare, with_data
from speciarl_jax.models.prompt_batch import UNLABELLED
from speciarl_jax.training import sample_logger, steps
from speciarl_jax.training import state as state_lib

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
