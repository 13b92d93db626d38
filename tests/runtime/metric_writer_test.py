"""Rows of metrics, and what a resumed run does with those of the run before."""

import json
import pathlib

import numpy as np
import pytest
from etils import epath

from speciarl_jax.runtime import jsonl
from speciarl_jax.runtime.metric_writer import MetricWriter, Writer


def rows(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def write(folder, steps, first_step=0, offset=0.0):
    writer = MetricWriter(folder, first_step=first_step)
    for step in steps:
        writer.write(step, {"reward/mean": np.float32(step / 3 + offset), "update/kl": 0.5})
    writer.close()


def test_a_row_holds_its_step_and_every_value(tmp_path):
    write(tmp_path, [1, 2])
    got = rows(tmp_path)
    assert [set(row) for row in got] == [{"step", "time", "reward/mean", "update/kl"}] * 2
    assert [row["step"] for row in got] == [1, 2] and got[0]["time"] <= got[1]["time"]
    # A float32 is written so that the very same number is read back.
    assert np.float32(got[0]["reward/mean"]) == np.float32(1 / 3)


def test_a_row_is_on_disk_as_soon_as_it_is_written(tmp_path):
    writer = MetricWriter(tmp_path)
    writer.write(1, {"reward/mean": 1.0})
    assert [row["step"] for row in rows(tmp_path)] == [1]
    writer.close()


def test_a_resumed_run_drops_the_rows_that_it_writes_again(tmp_path):
    write(tmp_path, [1, 2, 3, 4])
    write(tmp_path, [3, 4, 5], first_step=3, offset=100.0)
    got = rows(tmp_path)
    assert [row["step"] for row in got] == [1, 2, 3, 4, 5]
    assert [row["reward/mean"] > 50 for row in got] == [False, False, True, True, True]


def test_two_rows_of_one_step_are_refused_unless_they_are_written_again(tmp_path):
    write(tmp_path, [1, 2, 3])
    path = tmp_path / "metrics.jsonl"
    path.write_text(path.read_text() + path.read_text().splitlines()[2] + "\n")
    said = "metrics.jsonl, lines 3 and 4 are both about step 3; .*delete the others"
    before = path.read_text()
    with pytest.raises(ValueError, match=said):
        MetricWriter(tmp_path, first_step=4)
    with pytest.raises(ValueError, match=said):
        jsonl.read(path, once=jsonl.STEPS)
    assert path.read_text() == before
    write(tmp_path, [3], first_step=3)
    own_row = path.read_text() + '{"step": 3, "time": 1.0, "validation/birds/hm": 0.5}\n'
    path.write_text(own_row)
    assert len(jsonl.read(path, once=jsonl.STEPS)) == 4
    path.write_text(own_row.removesuffix("\n").rpartition("\n")[0] + "\n")
    assert [row["step"] for row in rows(tmp_path)] == [1, 2, 3]


@pytest.mark.parametrize("end", ['{"step": 2, "rewa', '{"step": 2}}\n', "[1]\n", "null\n", "\n"])
def test_a_line_that_a_kill_cut_short_is_dropped(tmp_path, end):
    write(tmp_path, [1])
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write(end)
    write(tmp_path, [2], first_step=2)
    assert [row["step"] for row in rows(tmp_path)] == [1, 2]


class Killed(Exception):
    """Stands for the end of the process in the middle of a write."""


def half(path, text, **options):
    pathlib.Path(path).write_text(text[: len(text) // 2])
    raise Killed


def test_a_kill_while_rows_are_dropped_loses_no_earlier_row(tmp_path, monkeypatch):
    write(tmp_path, [1, 2, 3])
    with monkeypatch.context() as patch:
        patch.setattr(type(epath.Path(tmp_path)), "write_text", half)
        with pytest.raises(Killed):
            MetricWriter(tmp_path, first_step=3)
        assert [row["step"] for row in rows(tmp_path)] == [1, 2, 3]
        # Where none are dropped, nothing is written.
        MetricWriter(tmp_path, first_step=4).close()
    write(tmp_path, [3], first_step=3)
    assert [row["step"] for row in rows(tmp_path)] == [1, 2, 3]


def test_numbers_that_are_not_finite_are_null_in_every_line_of_json(tmp_path):
    writer = MetricWriter(tmp_path)
    writer.write(1, {"update/loss": float("nan"), "update/grad_norm": np.float32("inf")})
    writer.close()
    lines = jsonl.JsonLines(tmp_path / "samples.jsonl", 0)
    lines.add({"step": 1, "rewards": [0.5, float("-inf")], "source": {"width": float("nan")}})

    def refuse(name):
        raise AssertionError(name)

    (row,) = [
        json.loads(line, parse_constant=refuse)
        for line in (tmp_path / "metrics.jsonl").read_text().splitlines()
    ]
    assert row["update/loss"] is None and row["update/grad_norm"] is None and row["step"] == 1
    sample = json.loads((tmp_path / "samples.jsonl").read_text(), parse_constant=refuse)
    assert sample == {"step": 1, "rewards": [0.5, None], "source": {"width": None}}


def test_files_of_earlier_versions_that_have_nan_in_them_are_read(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "update/loss": NaN, "update/kl": -Infinity, "a": 0.5}\n')
    assert jsonl.read(path) == [{"step": 1, "update/loss": None, "update/kl": None, "a": 0.5}]


class Listed(Writer):
    """Keeps what it is given, until it fails."""

    name = "the list"

    def __init__(self, fails_at=None):
        self.got, self._fails_at = [], fails_at

    def begin(self, rows):
        self.got.append([row["step"] for row in rows])

    def write(self, step, values):
        if step == self._fails_at:
            raise ConnectionError("away\nfor long")
        self.got.append((step, values))

    def close(self):
        self.got.append("closed")


def test_writers_get_every_row_and_those_of_earlier_processes(tmp_path):
    write(tmp_path, [1, 2])
    listed = Listed()
    writer = MetricWriter(tmp_path, first_step=2, writers=[listed])
    writer.write(2, {"update/kl": np.float32(0.5)})
    writer.close()
    assert listed.got == [[1], (2, {"update/kl": 0.5}), "closed"]


def test_a_writer_that_fails_is_left_out_with_one_warning(tmp_path, caplog):
    failing, listed = Listed(fails_at=2), Listed()
    writer = MetricWriter(tmp_path, writers=[failing, listed])
    for step in (1, 2, 3):
        writer.write(step, {"update/kl": 0.5})
    writer.close()
    assert [row["step"] for row in rows(tmp_path)] == [1, 2, 3]
    assert len(failing.got) == 1 and len(listed.got) == 4
    assert [record.getMessage() for record in caplog.records] == [
        "the list failed, and gets nothing from now on; metrics.jsonl has everything: "
        "ConnectionError: away"
    ]
