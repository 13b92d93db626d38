"""An offline run of W&B, read back from its files: the numbers and images of the record."""

import json
import math
import subprocess
import sys

import numpy as np
import pytest
import wandb_files
from etils import epath
from PIL import Image

from configs import quickstart
from speciarl_jax.runtime.metric_writer import MetricWriter
from speciarl_jax.training.writers import target as writers
from speciarl_jax.training.writers import tracker
from speciarl_jax.training.writers import wandb as wandb_writer
from speciarl_jax.training.writers.sample import COLUMNS, Sample


@pytest.fixture
def config():
    config = quickstart.get_config()
    config.logging.writers = ("wandb",)
    config.logging.wandb_mode = "offline"
    config.logging.project = "birds"
    return config


@pytest.fixture
def data_dir(monkeypatch):
    """W&B finds its folders by the environment, which a test must not change for others."""
    for module, name in ((tracker, "_FINISH"), (wandb_writer, "_PATIENCE")):
        monkeypatch.setattr(module, name, 300.0)  # for a machine that has much to do
    monkeypatch.setenv("WANDB_DATA_DIR", "")
    monkeypatch.delenv("WANDB_DATA_DIR")


def sample(number):
    image = np.full((6, 9, 3), 20 * number, np.uint8)
    image[0, 0] = (255, 0, 0)
    return Sample(
        image if number % 2 else None,
        number,
        "red fox",
        "What is it?",
        ["a fox\u2028!", "<b>dog</b>"],
        ["generic", "wrong"],
        [1.0, None],
    )


def open_writer(config, workdir, first_step):
    target = writers.Target(epath.Path(workdir), config, first_step)
    return MetricWriter(workdir, first_step=first_step, writers=writers.open_writers(target))


def write(writer, steps, offset=0.0):
    for step in steps:
        values = {"reward/mean": np.float32(step / 3 + offset), "update/kl": math.nan}
        writer.write(step, values)
        if step % 2:
            writer.write_samples(step, [sample(2 * step), sample(2 * step + 1)])
        if step % 3 == 0:
            writer.write(step, {"validation/birds/hm": step / 7, "time/validation": 2.0})
        writer.flush()


def record(workdir):
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [
        {
            name: math.nan if value is None else value
            for name, value in row.items()
            if name != "time"
        }
        for row in rows
    ]


def same(got, want):
    assert len(got) == len(want)
    for a, b in zip(got, want, strict=True):
        assert a.keys() == b.keys()
        for name, value in b.items():
            assert a[name] == value or (math.isnan(a[name]) and math.isnan(value)), name


def test_an_offline_run_holds_the_numbers_of_the_record_and_its_images(config, data_dir, tmp_path):
    writer = open_writer(config, tmp_path, 1)
    writer.write(0, {"validation/birds/hm": 0.25})
    write(writer, [1, 2, 3])
    writer.close()
    (run,) = wandb_files.runs(tmp_path)
    assert (run.project, run.name) == ("birds", tmp_path.name)
    same(run.metrics(), record(tmp_path))
    # W&B drops what does not come at a later place.
    places = [row["_step"] for row in run.history]
    assert places == sorted(set(places)) and len(places) == 7
    (first, columns, rows), (third, *_) = run.tables()
    assert (first, third, tuple(columns)) == (1, 3, COLUMNS)
    assert [row[1:] for row in rows] == [
        [number, "red fox", "What is it?", *answer]
        for number in (2, 3)
        for answer in (["a fox\u2028!", "generic", 1.0], ["<b>dog</b>", "wrong", None])
    ]
    assert rows[0][0] is None
    np.testing.assert_array_equal(np.asarray(Image.open(rows[2][0])), sample(3).image)
    # Nothing lies outside of the workdir.
    assert rows[2][0].is_relative_to(tmp_path)


def test_a_resumed_run_goes_on_with_the_same_run_and_sends_no_step_again(
    config, data_dir, tmp_path
):
    first = open_writer(config, tmp_path, 1)
    write(first, [1, 2, 3, 4])
    first.close()
    # The checkpoint is that of step 2; what was computed again is the same.
    second = open_writer(config, tmp_path, 3)
    write(second, [3, 4, 5, 6])
    second.close()
    before, after = wandb_files.runs(tmp_path)
    assert before.id == after.id
    same([*before.metrics(), *after.metrics()], record(tmp_path))
    places = [row["_step"] for run in (before, after) for row in run.history]
    assert places == sorted(set(places))
    assert [step for run in (before, after) for step, *_ in run.tables()] == [1, 3, 5]


def test_rows_that_the_service_lacks_are_sent_at_the_next_start(config, data_dir, tmp_path):
    """W&B was named only when the run was started again."""
    alone = MetricWriter(tmp_path)
    write(alone, [1, 2, 3])
    alone.close()
    writer = open_writer(config, tmp_path, 3)
    write(writer, [3, 4])
    writer.close()
    (run,) = wandb_files.runs(tmp_path)
    same(run.metrics(), record(tmp_path))


@pytest.mark.slow
def test_a_killed_run_leaves_all_that_was_flushed(config, tmp_path):
    """The process dies by SIGKILL, without an end of the run."""
    program = f"""
import os, pathlib, sys, time
sys.path[:0] = {sys.path!r}
from configs import quickstart
import wandb_test as t
config = quickstart.get_config()
config.logging.writers, config.logging.wandb_mode = ("wandb",), "offline"
folder = pathlib.Path({str(tmp_path)!r})
writer = t.open_writer(config, folder, 1)
t.write(writer, [1, 2, 3])
until = time.monotonic() + 200
known = folder / "wandb.json"
while not (known.exists() and '"next": 12' in known.read_text()) and time.monotonic() < until:
    time.sleep(0.05)
os.kill(os.getpid(), 9)
"""
    here = str(epath.Path(__file__).parent)
    done = subprocess.run(
        [sys.executable, "-c", program.replace("sys.path[:0] = [", f"sys.path[:0] = [{here!r}, ")],
        timeout=300,
        capture_output=True,
        text=True,
    )
    assert done.returncode == -9, done.stderr
    # W&B's own process ends with it. What was noted as sent is in the file.
    (run,) = wandb_files.runs(tmp_path, finished=False)
    same(run.metrics(), record(tmp_path))


SECRET = "hunter2"


def test_no_secret_is_sent(config, data_dir, tmp_path, monkeypatch):
    judge = config.verifier.http_judge
    judge.cache = f"redis://me:{SECRET}@host:6379/0"
    judge.server.url = f"https://me:{SECRET}@host/v1?key={SECRET}"
    judge.decoding.extra_body = {"api_key": SECRET}
    config.data.options = {"manifest": f"https://me:{SECRET}@host/rows.csv?sig={SECRET}"}
    monkeypatch.setattr(sys, "argv", ["train", f"--config.verifier.http_judge.cache={judge.cache}"])
    writer = open_writer(config, tmp_path, 1)
    write(writer, [1])
    writer.close()
    (run,) = wandb_files.runs(tmp_path)
    assert run.config["train"] == json.loads(config.to_json())["train"]
    assert run.config["data"]["options"]["manifest"] == "https://host/rows.csv"
    for path in tmp_path.rglob("*"):
        if path.is_file():
            assert SECRET.encode() not in path.read_bytes(), path


@pytest.mark.parametrize(
    "change, message",
    [
        ({"writers": ("wandb", "tensorbord")}, "'tensorbord' is no choice .*'tensorboard', 'track"),
        ({"wandb_mode": "of"}, r"config.logging.wandb_mode is 'of'; choose one of \('online', 'o"),
        ({"wandb_mode": "online"}, "there is no key for it; run `wandb login`, .* to 'offline'"),
    ],
)
def test_what_cannot_work_is_refused_at_the_start(config, change, message, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    writers.check(config, tmp_path)
    config.logging.update(change)
    with pytest.raises(ValueError, match=message):
        writers.check(config, tmp_path)


def test_a_missing_package_and_a_workdir_in_a_bucket_are_refused(config, monkeypatch, tmp_path):
    with pytest.raises(ValueError, match="gs://b/run is no folder of .* set config.logging.dir"):
        wandb_writer.check(writers.Target(epath.Path("gs://b/run"), config))
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(
        ValueError, match="cannot be imported .*; pip install wandb, or take it out"
    ):
        writers.check(config, tmp_path)
