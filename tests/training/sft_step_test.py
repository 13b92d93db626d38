"""Supervised training: what is imitated, and that it is learned."""

import dataclasses
import json

import numpy as np
import pytest

from speciarl_jax import train
from speciarl_jax.training import sft_step

TEMPLATE = "<think>It is some {generic}.</think> <answer>{label}</answer>"


def test_targets_are_the_labels_in_the_policys_own_tokens(run):
    rows = [run.train_source[i] for i in (0, 5)]
    found = sft_step.targets(
        rows,
        3,
        run.tokenizer,
        template=TEMPLATE,
        max_tokens=24,
        end_id=run.end_ids[0],
    )
    # The third row only pads the batch: it has no token.
    assert found.mask_BNT.shape == (3, 1, 24) and not found.mask_BNT[2].any()
    texts = run.answers(found.tokens_BNT[:2], found.mask_BNT[:2])
    want = [
        f"<think>It is some {r['generic']}.</think> <answer>{r['label']}</answer>" for r in rows
    ]
    assert texts == [[text] for text in want]
    last = found.mask_BNT[:2].sum(-1)[:, 0] - 1
    assert (found.tokens_BNT[[0, 1], 0, last] == run.end_ids[0]).all()


@pytest.mark.parametrize(
    "template, tokens, said",
    [
        ("an image", 24, "put {label} where the answer names the label"),
        ("{label} by {artist}", 24, "asks for 'artist', which the data set's rows lack; they have"),
        (TEMPLATE, 3, "tokens, config.rollout.max_tokens is 3; raise it"),
    ],
)
def test_what_does_not_fit_is_refused(run, template, tokens, said):
    with pytest.raises(ValueError, match=said):
        sft_step.targets(
            [run.train_source[0]], 1, run.tokenizer, template=template, max_tokens=tokens, end_id=0
        )


def test_the_labels_become_likelier(run, small_config, tmp_path):
    config = small_config(
        train__objective="sft",
        train__steps=8,
        train__log_every=1,
        loss__kl_coefficient=0.0,
        rollout__max_tokens=24,
        optimizer__learning_rate=3e-2,
        checkpoint__save_every=9,
    )
    train.train(dataclasses.replace(run, config=config), tmp_path)
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    loss = [row["update/loss"] for row in rows]
    assert np.mean(loss[-2:]) < 0.9 * loss[0]
