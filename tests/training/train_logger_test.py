"""What the loop tells and saves while it runs, around a step that computes nothing."""

import dataclasses
import json

import pytest

from speciarl_jax import train
from speciarl_jax.evaluation import report
from speciarl_jax.experiment import host_verification
from speciarl_jax.experiment.run import fingerprint
from speciarl_jax.runtime.checkpoint import Checkpoints
from speciarl_jax.training import state as state_lib
from speciarl_jax.training import steps, train_logger
from speciarl_jax.verifiers.category import Category

SHARES = {f"verify/{category.name.lower()}": 1 / len(Category) for category in Category}
BEST = {"checkpoint__keep_best": 1, "checkpoint__best_metric": "update/loss"}


@pytest.fixture
def losses(monkeypatch):
    """Steps whose loss is their number; (number of the step) -> None may raise before them.

    `more(number)` are further metrics.
    """

    def install(before=lambda number: None, more=lambda number: {}):
        def train_step(run, optimizer, state_sharding, stage_done, compiled):
            def program(state, base, verifier, batch, number):
                before(int(number))
                metrics = {"update/loss": float(number), "update/skipped_in_a_row": 0.0}
                return state, metrics | more(int(number))

            return program

        monkeypatch.setattr(steps, "train_step", train_step)

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
    names = ["data/epoch", "data/images_seen", "update/loss", "update/skipped_in_a_row"]
    assert transfers == [names] * 2


def test_rewards_that_are_not_finite_end_the_run_and_leave_a_record_to_read(
    run, small_config, losses, tmp_path, caplog
):
    def metrics(number):
        bad = number in (2, 4, 5, 6)
        mean = float("nan") if bad else 0.5
        return {"reward/not_finite": 0.25 * bad, "reward/mean": mean} | SHARES

    losses(more=metrics)
    config = small_config(train__steps=9, train__max_skipped=3, checkpoint__save_every=1)
    run = dataclasses.replace(run, config=config)
    with pytest.raises(FloatingPointError) as error:
        train.train(run, tmp_path)
    assert "step 6: rewards were not finite in the last 3 steps" in str(error.value)
    assert "rl/rewards/best_prediction.py (config.reward.name)" in str(error.value)
    text = (tmp_path / "metrics.jsonl").read_text()
    rows = [json.loads(line) for line in text.splitlines()]
    assert "NaN" not in text and [row["reward/mean"] for row in rows][:3] == [0.5, None, 0.5]
    assert [row["health/reward_not_finite"] for row in rows] == [0, 1, 0, 1, 2, 3]
    assert [row["health/metrics_not_finite"] for row in rows] == [0, 1, 0, 1, 2, 3]
    said = [r.getMessage() for r in caplog.records if "health/reward_not_finite" in r.getMessage()]
    assert said == [
        "step 2, health/reward_not_finite: the reward of 25.0% of the completions is not finite, "
        "and they teach nothing: mend speciarl_jax/rl/rewards/best_prediction.py "
        "(config.reward.name)"
    ]
    report.write(tmp_path)
    written = (tmp_path / "report.md").read_text()
    assert "health/reward\\_not\\_finite" in written or "health/reward_not_finite" in written
    # Started again, the run remembers how often it was so.
    losses(more=metrics)
    with pytest.raises(FloatingPointError, match="step 6"):
        train.train(run, tmp_path)


def test_images_seen_and_epochs_go_on_after_a_restart(run, small_config, losses, tmp_path):
    losses()
    for steps_now in (2, 4):
        config = small_config(train__steps=steps_now, checkpoint__save_every=1)
        train.train(dataclasses.replace(run, config=config), tmp_path)
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    size = run.config.train.batch_size
    assert [row["data/images_seen"] for row in rows] == [size * n for n in range(1, 5)]
    epochs = [size * n / len(run.train_source) for n in range(1, 5)]
    assert [row["data/epoch"] for row in rows] == pytest.approx(epochs)
