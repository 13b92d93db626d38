"""Samples of training: what is written, when, and that looking changes nothing."""

import base64
import dataclasses
import io
import json
import types

import jax
import judged_step
import numpy as np
import pytest
import small_run
from PIL import Image

from speciarl_jax import train
from speciarl_jax.rl.rewards import best_prediction
from speciarl_jax.rollout.types import Samples
from speciarl_jax.training import sample_logger, train_data
from speciarl_jax.training.writers.tensorboard import TensorBoard
from speciarl_jax.verifiers.category import Category

KEYS = {"step", "image_id", "label", "responses", "categories", "rewards"}


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def made_up_run(every):
    """Answers are the tokens as numbers."""
    return types.SimpleNamespace(
        config=types.SimpleNamespace(train=types.SimpleNamespace(samples_every=every)),
        labels=types.SimpleNamespace(leaf_ids=("owl", "fox")),
        builder=types.SimpleNamespace(text="What is it?"),
        answers=lambda tokens, mask: [
            ["|".join(map(str, t[m])) for t, m in zip(*group, strict=True)]
            for group in zip(tokens, mask, strict=True)
        ],
    )


def samples(offset=0):
    """Two answers of up to three tokens about two images and a row without one."""
    tokens = np.arange(18).reshape(3, 2, 3) + offset
    return Samples(
        image_id_K=np.array([7, 8, 0], np.uint32),
        label_index_K=np.array([1, 0, 0]),
        weight_K=np.array([1.0, 1.0, 0.0]),
        tokens_KNT=tokens,
        mask_KNT=np.broadcast_to(np.arange(3) < 2, tokens.shape),
        category_KN=np.array([[4, 0], [-1, 2], [0, 0]]),
        valid_KN=np.array([[True, True], [True, False], [False, False]]),
        reward_KN=np.array([[1.0, 0.0], [-1.0, np.nan], [np.nan, np.nan]], np.float32),
    )


def write(folder, steps, first_step=1, every=2, sources=(), offset=0):
    board = TensorBoard(folder)
    path = folder / sample_logger.FILE
    writer = sample_logger.SampleLogger(path, first_step, made_up_run(every), board)
    for step in steps:
        writer.write(step, samples(offset), sources)
    writer.flush()
    board.close()
    return path


def test_a_row_holds_an_image_with_its_answers_categories_and_rewards(tmp_path):
    got = lines(write(tmp_path, [1]))
    assert got == [
        {
            "step": 1,
            "image_id": 7,
            "label": "fox",
            "responses": ["0|1", "3|4"],
            "categories": ["specific", "wrong"],
            "rewards": [1.0, 0.0],
        },
        {
            "step": 1,
            "image_id": 8,
            "label": "owl",
            "responses": ["6|7", "9|10"],
            "categories": ["unparsed", "unverified"],
            # No verdict, no reward: not even 0.
            "rewards": [-1.0, None],
        },
    ]


def test_the_first_step_and_every_so_many_are_written(tmp_path):
    assert [row["step"] for row in lines(write(tmp_path, range(1, 8), every=3))][::2] == [1, 3, 6]


def test_a_resumed_run_writes_no_row_twice(tmp_path):
    path = write(tmp_path, range(1, 7))
    with path.open("a") as file:
        file.write('{"step": 6, "resp')
    write(tmp_path, range(4, 9), first_step=4, offset=100)
    got = lines(path)
    assert [row["step"] for row in got][::2] == [1, 2, 4, 6, 8]
    assert [row["responses"][0] for row in got][::2] == ["0|1"] * 2 + ["100|101"] * 3


def test_none_are_written_where_none_are_asked_for(tmp_path):
    assert not write(tmp_path, [1], every=0).exists()


def test_images_and_what_is_known_of_them_stand_beside_the_answers(tmp_path):
    image = np.full((200, 100, 3), 128, np.uint8)
    row = {"image": image, "image_id": 7, "label": "red fox", "label_id": "fox", "style": "plain"}
    # The second image of the samples is not among the rows that were kept.
    first, second = lines(write(tmp_path, [1], sources=[{**row, "image_id": 9}, row]))
    assert first["label"] == "red fox" and first["style"] == "plain"
    head, _, data = first["image"].partition(",")
    assert head == "data:image/webp;base64"
    assert max(Image.open(io.BytesIO(base64.b64decode(data))).size) == 96
    assert second.keys() == KEYS
    written = b"".join(p.read_bytes() for p in (tmp_path / "tensorboard").iterdir())
    assert b"rollout_images/0" in written and b"rollout_samples/1" in written


def test_thumbnails_are_made_of_logged_images_only(tmp_path, monkeypatch):
    made = []
    shrink = sample_logger.thumbnails.shrink
    monkeypatch.setattr(sample_logger.thumbnails, "shrink", lambda *x: made.append(1) or shrink(*x))
    row = {"image": np.zeros((9, 9, 3), np.uint8), "image_id": 7}
    write(tmp_path, range(1, 7), every=3, sources=[row])
    assert len(made) == 3  # steps 1, 3 and 6


@pytest.fixture(scope="module")
def watched(run, small_config, tmp_path_factory):
    """The run of three steps whose samples are kept, and its workdir."""
    changes = {"train__steps": 3, "train__samples_every": 2, "train__num_logged_images": 3}
    changed = dataclasses.replace(run, config=small_config(**changes))
    workdir = tmp_path_factory.mktemp("watched")
    train.train(changed, workdir)
    return changed, workdir


def metric_rows(workdir):
    rows = lines(workdir / "metrics.jsonl")
    return [{k: v for k, v in row.items() if not k.startswith("time")} for row in rows]


@pytest.mark.slow
def test_looking_changes_no_bit(run, small_config, watched, tmp_path):
    blind = dataclasses.replace(run, config=small_config(train__steps=3))
    lora, _ = train.train(blind, tmp_path)
    again, _ = train.train(*watched)  # finished: hands its adapters back
    assert metric_rows(tmp_path) == metric_rows(watched[1])
    for name, value in small_run.arrays(lora).items():
        np.testing.assert_array_equal(small_run.arrays(again)[name], value, err_msg=name)
    assert not (tmp_path / sample_logger.FILE).exists()


@pytest.mark.slow
def test_samples_are_what_the_step_sampled(watched):
    run, workdir = watched
    got = lines(workdir / sample_logger.FILE)
    assert [row["step"] for row in got] == [1] * 3 + [2] * 3
    batch = next(train_data.training_batches(run)).batch
    sample = run.sampler(run.config.rollout.num_rollouts, run.config.rollout.max_tokens)
    key = jax.random.fold_in(jax.random.key(run.config.seed), np.uint32(1))
    one = np.float32(1)
    _, rollout = jax.jit(sample)(run.lora, run.base, batch, key, one, one)
    category, valid = run.verifier.verify(rollout.tokens_BNT, rollout.mask_BNT, batch.label_index_B)
    texts = run.answers(np.asarray(rollout.tokens_BNT), np.asarray(rollout.mask_BNT))
    rewards = np.asarray(best_prediction.reward(category, valid))
    for b, row in enumerate(got[:3]):
        assert row["image_id"] == batch.image_id_B[b] and row["responses"] == texts[b]
        names = [Category(int(c)).name.lower() for c in category[b]]
        assert row["categories"] == names and row["rewards"] == rewards[b].tolist()
        assert row["generic"] == "vehicle" and row["image"].startswith("data:")


@pytest.mark.slow
@pytest.mark.parametrize("path", ["three", "dynamic", "host"])
def test_every_way_to_run_a_step_hands_its_samples_over(run, small_config, path, tmp_path):
    changes = {"train__steps": 1, "train__samples_every": 1, "train__num_logged_images": 2}
    ways = {
        "three": {"train__fused": False},
        "dynamic": {
            "train__dynamic_sampling__max_rounds": 2,
            "train__dynamic_sampling__batch_size": 8,
        },
        "host": {"rollout__num_rollouts": judged_step.ANSWERS, "verifier__num_chunks": 2},
    }
    changed = dataclasses.replace(run, config=small_config(**changes, **ways[path]))
    if path == "host":
        changed = dataclasses.replace(changed, verifier=judged_step.FunctionVerifier())
    train.train(changed, tmp_path)
    got = lines(tmp_path / sample_logger.FILE)
    assert len(got) == 2 and all(row.keys() >= KEYS for row in got)
    for row in got:
        index = changed.labels.leaf_index(row["label_id"])
        if path == "host":
            want = [judged_step.opinion(text, index) for text in row["responses"]]
            assert row["categories"] == [Category(c).name.lower() for c in want]
        assert len(set(row["rewards"])) > (path == "dynamic")
