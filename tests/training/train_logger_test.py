"""What the loop tells and saves while it runs, around a step that computes nothing."""

import dataclasses
import json

import pytest

from speciarl_jax import train
from speciarl_jax.experiment import host_verification
from speciarl_jax.experiment.run import fingerprint
from speciarl_jax.runtime.checkpoint import Checkpoints
from speciarl_jax.training import state as state_lib
from speciarl_jax.training import train_logger

BEST = {"checkpoint__keep_best": 1, "checkpoint__best_metric": "update/loss"}


@pytest.fixture
def losses(monkeypatch):
    """Steps whose loss is their number; (number of the step) -> None may raise before them."""

    def install(before=lambda number: None):
        def train_step(run, optimizer, state_sharding, stage_done):
            def program(state, base, verifier, batch, number):
                before(int(number))
                return state, {"update/loss": float(number), "update/skipped_in_a_row": 0.0}

            return program

        monkeypatch.setattr(train.steps, "train_step", train_step)

    return install


def test_a_judge_that_stays_away_leaves_a_window_with_the_last_step(
    run, small_config, losses, tmp_path
):
    def away(number):
        if number == 4:
            raise host_verification.JudgeUnavailable("away")

    losses(away)
    config = small_config(train__steps=5, checkpoint__save_every=100, **BEST)
    run = dataclasses.replace(run, config=config)
    with pytest.raises(host_verification.JudgeUnavailable):
        train.train(run, tmp_path)
    with Checkpoints(tmp_path / "checkpoints", **config.checkpoint) as checkpoints:
        state = state_lib.start(run)[1]
        done, _, position = checkpoints.resume(state, fingerprint(run))
    # The first step is saved whatever `save_every` is; the window begins after it.
    assert done == 3 and tuple(position["window"]) == (2.0 + 3.0, 2)


def test_metrics_of_a_step_come_in_one_transfer(run, small_config, losses, tmp_path, monkeypatch):
    losses()
    transfers, get = [], train_logger.jax.device_get

    def counted(tree):
        transfers.append(sorted(tree))
        return get(tree)

    monkeypatch.setattr(train_logger.jax, "device_get", counted)
    run = dataclasses.replace(run, config=small_config(train__steps=2))
    train.train(run, tmp_path)
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["update/loss"] for line in lines] == [1.0, 2.0]
    assert transfers == [["update/loss", "update/skipped_in_a_row"]] * 2
