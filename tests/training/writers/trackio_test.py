"""A run of Trackio, read back from the files that it keeps on this machine."""

import json
import os
import pathlib
import sqlite3
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from configs import quickstart
from speciarl_jax.training.writers import target as writers
from speciarl_jax.training.writers.sample import COLUMNS

ROOT = pathlib.Path(__file__).resolve().parents[3]
# In a process of its own: Trackio reads the environment when it is imported.
PROGRAM = """
import sys
import numpy as np
from etils import epath
from configs import quickstart
from speciarl_jax.runtime.metric_writer import MetricWriter
from speciarl_jax.training.writers import target as writers
from speciarl_jax.training.writers.sample import Sample

config = quickstart.get_config()
config.logging.writers = ("trackio",)
workdir = epath.Path(sys.argv[1])
for first, last in ((1, 3), (3, 4)):
    target = writers.Target(workdir, config, first)
    writer = MetricWriter(workdir, first_step=first, writers=writers.open_writers(target))
    for step in range(first, last + 1):
        writer.write(step, {"reward/mean": step / 3})
        image = np.full((6, 9, 3), 20 * step, np.uint8)
        answers = (["a fox", "a dog"], ["specific", "wrong"], [1.0, None])
        writer.write_samples(step, [Sample(image, step, "red fox", "What is it?", *answers)])
    writer.flush()
    writer.close()
"""


def test_a_resumed_run_is_one_run_with_the_numbers_of_the_record_and_its_images(tmp_path):
    workdir = tmp_path / "birds"
    workdir.mkdir()
    files = tmp_path / "files"
    env = os.environ | {"PYTHONPATH": str(ROOT), "TRACKIO_DIR": str(files), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, workdir], env=env, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    with sqlite3.connect(files / "speciarl.db") as base:
        rows = base.execute("select run_name, step, metrics from metrics order by id").fetchall()
        ((config,),) = base.execute("select config from configs").fetchall()
    (name,) = {name for name, *_ in rows}
    assert name.startswith("birds-")
    assert json.loads(config)["train"]["steps"] == quickstart.get_config().train.steps
    rows = [(step, json.loads(values)) for _, step, values in rows]
    numbers = [(step, values) for step, values in rows if "rollouts" not in values]
    record = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert numbers == [(row["step"], {"reward/mean": row["reward/mean"]}) for row in record]
    tables = [(step, values["rollouts"]["_value"]) for step, values in rows if "rollouts" in values]
    assert [step for step, _ in tables] == [1, 2, 3, 4]
    for step, table in tables:
        assert [tuple(row) for row in table] == [COLUMNS] * 2
        assert [list(row.values())[1:] for row in table] == [
            [step, "red fox", "What is it?", "a fox", "specific", 1.0],
            [step, "red fox", "What is it?", "a dog", "wrong", None],
        ]
        image = Image.open(files / "media" / table[0]["image"]["file_path"]).convert("RGB")
        np.testing.assert_array_equal(np.asarray(image), np.full((6, 9, 3), 20 * step, np.uint8))


def test_a_missing_package_is_refused_at_the_start(monkeypatch, tmp_path):
    config = quickstart.get_config()
    config.logging.writers = ("trackio",)
    monkeypatch.setitem(sys.modules, "trackio", None)
    with pytest.raises(ValueError, match="cannot be imported .*; pip install trackio, or take it"):
        writers.check(config, tmp_path)
