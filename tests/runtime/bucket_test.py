"""Workdirs in a bucket (gs://...), where nothing can be appended to what is there."""

import json
import threading
import time
import types

import pytest
import report_folder
from etils import epath
from etils.epath import backend, gpath
from fsspec.implementations import dirfs, local
from PIL import Image

from speciarl_jax.evaluation import predictions, report
from speciarl_jax.runtime import jsonl, process_identity, workdir_lock
from speciarl_jax.runtime.metric_writer import MetricWriter
from speciarl_jax.runtime.workdir import open_workdir
from speciarl_jax.runtime.workdir_lock import WorkdirLock
from speciarl_jax.tools import compare
from speciarl_jax.training.writers import tensorboard


@pytest.fixture
def bucket(tmp_path, monkeypatch):
    """gs:// paths as etils opens them with fsspec, in a folder instead of Google's store."""

    class Store(dirfs.DirFileSystem):
        def open(self, path, mode="rb", **options):
            if "a" in mode:
                raise ValueError("nothing can be appended to an object")
            return super().open(path, mode, **options)

    store = Store(str(tmp_path), local.LocalFileSystem(auto_mkdir=True))
    fsspec = type(backend.fsspec_backend)
    monkeypatch.setattr(fsspec, "fs", lambda self, path: store)
    monkeypatch.setattr(gpath, "_is_tf_installed", lambda: False)
    return tmp_path


@pytest.fixture
def clock(monkeypatch):
    """Seconds that pass only when a test says so."""
    clock = types.SimpleNamespace(now=0.0)
    monkeypatch.setattr(jsonl, "time", types.SimpleNamespace(monotonic=lambda: clock.now))
    return clock


def test_metrics_and_reports_are_written_to_a_bucket(bucket, monkeypatch):
    boards = []

    class Board:
        def __init__(self, folder, **options):
            boards.append(folder)

        def add_scalar(self, *args):
            pass

        def close(self):
            pass

    # tensorboardX talks to the store by itself.
    monkeypatch.setattr(tensorboard.tensorboardX, "SummaryWriter", Board)
    workdir = open_workdir("gs://bucket/run")
    writer = MetricWriter(workdir, writers=[tensorboard.TensorBoard(workdir)])
    writer.write(1, {"reward/mean": 0.5})
    writer.flush()
    assert jsonl.read(workdir / "metrics.jsonl")[0]["reward/mean"] == 0.5
    writer.write(2, {"reward/mean": 0.6})
    writer.close()
    again = MetricWriter(workdir, first_step=2, writers=[tensorboard.TensorBoard(workdir, 2)])
    again.write(2, {"reward/mean": 0.7})
    again.close()
    rows = jsonl.read(workdir / "metrics.jsonl")
    assert [(row["step"], row["reward/mean"]) for row in rows] == [(1, 0.5), (2, 0.7)]
    assert boards == ["gs://bucket/run/tensorboard"] * 2
    assert len(list(bucket.rglob("metrics.jsonl"))) == 1
    report_folder.make(workdir, images=8)
    written = report.write(workdir)
    assert all(str(path).startswith("gs://bucket/run/") for path in written)
    names = {path.name for path in bucket.rglob("*") if path.is_file()}
    assert names >= {"report.md", "report.html", "trade_off.png", "best_of.png", "training.png"}
    with (workdir / "figures" / "trade_off.png").open("rb") as file:
        assert Image.open(file).width > 600
    # Runs in a bucket are compared, and the comparison goes to one.
    runs = {name: compare.read_run(workdir) for name in ("one", "two")}
    compared = compare.compare(runs, report_folder.WEIGHTS)
    out = epath.Path("gs://bucket/compared")
    compare.write(out, compared, [workdir])
    assert (out / "comparison.md").read_text().count("one, base") > 1
    assert len(list(bucket.rglob("best_of.png"))) == 2


def answer(index, category="specific"):
    row = {"image_id": index, "label": "mug", "index": index}
    return {**row, "responses": [f"answer {index}"], "categories": [category]}


def test_answers_are_written_to_a_bucket_and_gone_on_with(bucket, clock):
    workdir = open_workdir("gs://bucket/run")
    part = predictions.Part("base", "emoji", "base", "greedy")
    store = predictions.Predictions(workdir)
    store.begin(part, {"a": 1})
    store.keep_config("emoji", {"b": 1})
    store.append(part, [answer(0), answer(1)])
    store.append(part, [answer(2)])
    store.flush()
    whole = (workdir / predictions.LINES).read_bytes()
    assert whole.count(b"\n") == 3
    again = predictions.Predictions(workdir)
    assert again.begin(part, {"a": 1}) == 3
    again.append(part, [answer(3, "unverified")])
    again.lines(part)[3]["categories"][0] = "wrong"
    again.rewrite()
    lines = predictions.read(workdir)[part]
    assert [line["categories"][0] for line in lines] == ["specific"] * 3 + ["wrong"]
    assert (workdir / predictions.LINES).read_bytes().startswith(whole)
    assert predictions.read_configs(workdir) == {"emoji": {"b": 1}}
    assert not list(bucket.rglob("*.unfinished"))


def test_writing_anew_takes_a_small_share_of_the_time_however_long_the_file_is(
    bucket, clock, monkeypatch
):
    part = predictions.Part("base", "emoji", "base", "greedy")
    store = predictions.Predictions(open_workdir("gs://bucket/run"))
    replace, began = jsonl.replace, []

    def slow(path, text):
        replace(path, text)
        began.append(clock.now)
        clock.now += 0.02 * text.count("\n")

    monkeypatch.setattr(jsonl, "replace", slow)
    for index in range(400):
        clock.now += 1.0
        store.append(part, [answer(index)])
    # Written anew for each of the answers, it would take 1,600 seconds; they take 400.
    assert clock.now < 1.06 * 400
    pauses = [b - a for a, b in zip(began, began[1:], strict=False)]
    assert len(pauses) > 3 and min(pauses) >= 30 and pauses[-1] > pauses[0]
    # A kill loses what came since the last time.
    assert 270 < len(predictions.read("gs://bucket/run")[part]) < 400
    store.flush()
    assert len(predictions.read("gs://bucket/run")[part]) == 400
    store.flush()
    assert len(began) == len(pauses) + 2


def test_a_bucket_has_one_writer_and_the_lock_of_a_dead_one_is_taken_over(bucket, monkeypatch):
    monkeypatch.setattr(workdir_lock, "_SETTLE", 0.01)
    monkeypatch.setattr(workdir_lock, "RENEW_EVERY", 0.05)
    workdir = open_workdir("gs://bucket/run")
    dead = process_identity.this_process() | {"pid": 2**22 + 1, "program": "train", "taken": "?"}
    (workdir / workdir_lock.FILE).write_text(json.dumps(dead))
    with WorkdirLock(workdir, "train") as lock:
        refused = pytest.raises(ValueError, match="delete gs://bucket/run/writer.lock")
        with refused, WorkdirLock(workdir, "evaluate"):
            pass
        first, until = lock.path.read_bytes(), time.monotonic() + 60
        while lock.path.read_bytes() in (first, b"") and time.monotonic() < until:
            time.sleep(0.01)
        assert lock.path.read_bytes() != first
    assert not [path for path in bucket.rglob("*") if path.is_file()]


def test_of_several_that_come_to_a_bucket_at_once_one_writes(bucket, monkeypatch):
    monkeypatch.setattr(workdir_lock, "_SETTLE", 1.0)
    workdir = open_workdir("gs://bucket/run")
    ready, done, found = threading.Barrier(4), threading.Event(), []

    def come(how):
        found.append(how)
        if len(found) == 4:
            done.set()

    def start():
        ready.wait()
        try:
            with WorkdirLock(workdir, "train"):
                come("writes")
                done.wait(60)
        except ValueError:
            come("refused")

    threads = [threading.Thread(target=start) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(found) == ["refused"] * 3 + ["writes"]
