"""A training run whose writers are W&B, offline, and TensorBoard: the same record in all places."""

import dataclasses
import json

import numpy as np
import pytest
import wandb_files
from PIL import Image

from speciarl_jax import train
from speciarl_jax.training import sample_logger
from speciarl_jax.training import steps as training_steps
from speciarl_jax.training.writers import tracker
from speciarl_jax.training.writers import wandb as wandb_writer

WRITERS = {"logging__writers": ("tensorboard", "wandb"), "logging__wandb_mode": "offline"}


@pytest.fixture(autouse=True)
def patience(monkeypatch):
    """For a machine that has much to do; and W&B's folders are those of each test."""
    for module, name in ((tracker, "_FINISH"), (wandb_writer, "_PATIENCE")):
        monkeypatch.setattr(module, name, 300.0)
    monkeypatch.setenv("WANDB_DATA_DIR", "")
    monkeypatch.delenv("WANDB_DATA_DIR")


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def record(workdir):
    rows = lines(workdir / "metrics.jsonl")
    return [{name: value for name, value in row.items() if name != "time"} for row in rows]


def test_a_run_writes_to_the_writers_of_its_configuration(run, small_config, tmp_path, monkeypatch):
    def train_step(run, optimizer, state_sharding, stage_done, compiled):
        def program(state, base, verifier, batch, number):
            return state, {"update/loss": float(number), "update/skipped_in_a_row": 0.0}

        return program

    monkeypatch.setattr(training_steps, "train_step", train_step)
    for steps in (2, 4):  # prolonged: goes on with the same run
        config = small_config(train__steps=steps, **WRITERS)
        train.train(dataclasses.replace(run, config=config), tmp_path)
    first, second = wandb_files.runs(tmp_path)
    assert first.id == second.id
    assert first.metrics() + second.metrics() == record(tmp_path)
    assert [row["update/loss"] for row in record(tmp_path)] == [1.0, 2.0, 3.0, 4.0]
    assert len(list((tmp_path / "tensorboard").iterdir())) == 2


@pytest.mark.slow
def test_rollouts_and_validations_of_a_run_are_those_of_the_record(run, small_config, tmp_path):
    changes = {"train__samples_every": 1, "train__num_logged_images": 2, "train__steps": 2}
    changes |= {"evaluation__every": 1, "evaluation__images": 8}
    config = small_config(**changes, **WRITERS)
    train.train(dataclasses.replace(run, config=config), tmp_path)
    (found,) = wandb_files.runs(tmp_path)
    rows = record(tmp_path)
    assert found.metrics() == rows
    assert [row["step"] for row in rows if "validation/emoji/hm" in row] == [0, 1, 2]
    samples = lines(tmp_path / sample_logger.FILE)
    for step, columns, table in found.tables():
        got = [dict(zip(columns, row, strict=True)) for row in table]
        said = [row for row in samples if row["step"] == step]
        assert [
            (one["label"], one["completion"], one["category"], one["reward"]) for one in got
        ] == [
            (row["label"], *answer)
            for row in said
            for answer in zip(row["responses"], row["categories"], row["rewards"], strict=True)
        ]
        for one in got:
            source = run.train_source[0]["image"]
            assert np.asarray(Image.open(one["image"])).shape == np.asarray(source).shape
            assert one["prompt"] == run.builder.text
    assert [step for step, *_ in found.tables()] == [1, 2]
