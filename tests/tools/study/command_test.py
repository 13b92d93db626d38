"""The command: what it writes and says, its exit codes, and a real study from end to end."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time
import types

import pytest

from speciarl_jax.runtime import exit_codes
from speciarl_jax.tools.study import __main__ as command
from speciarl_jax.tools.study import runner

ROOT = pathlib.Path(__file__).resolve().parents[3]
FILES = ("study.json", "table.md", "table.csv", "plot.svg", "plot.png")
STUDY = """
from speciarl_jax.tools.study import Row, Search, Study

def get_study():
    return Study(
        rows=(
            Row("base", "configs/quickstart.py", train=False, best_of=2),
            Row("SpeciaRL", "configs/quickstart.py"),
            Row("binary", "configs/binary.py:quickstart"{search}),
        ),
        seeds=(0, 1),
        sets={{"vehicles": {{"domains": ("vehicle",)}}, "food": {{"domains": ("food",)}}}},
        base="base",
        reference="SpeciaRL",
        overrides={overrides},
        search={how},
    )
"""


@pytest.fixture
def source(tmp_path):
    """(search of a row, Search, overrides) -> path of a study."""

    def source(search="", how="None", overrides="{}"):
        path = tmp_path / "small.py"
        path.write_text(STUDY.format(search=search, how=how, overrides=overrides))
        return str(path)

    return source


@pytest.fixture
def start_main(behave, monkeypatch, tmp_path):
    """Flags -> the result of `main` on a study in `tmp_path / "made"`."""

    def start_main(path, **changes):
        given = {"workdir": str(tmp_path / "made"), "dry_run": False, "report_only": False}
        given |= {"only": [], "rows": [], "seeds": [], "wait": True, "launcher": "local"}
        given |= {"override": []}
        given |= {"cluster": "slurm", "job_options": ""} | changes
        monkeypatch.setattr(
            command, "flags", types.SimpleNamespace(FLAGS=types.SimpleNamespace(**given))
        )
        monkeypatch.setattr(command.signal, "signal", lambda *_: None)
        return command.main(["study", path])

    return start_main


def test_it_writes_the_results_and_ends_with_the_number_of_failures(
    start_main, source, behave, tmp_path, capsys, monkeypatch
):
    made = tmp_path / "made"
    assert start_main(source(), dry_run=True) == 0
    assert "SpeciaRL, seed 1 (missing)\n  python -m speciarl_jax.train" in capsys.readouterr().out
    assert not made.exists()
    behave(fail={"binary/seed_1": 5})
    assert start_main(source()) == 1
    said = capsys.readouterr()
    assert "1 runs failed" in said.err and "exit code 5" in said.err
    assert "n=1 of 2" in said.out and "vehicles: 40 images" in said.out
    assert all((made / name).stat().st_size for name in FILES)
    assert not list(made.glob(".*"))
    behave()
    assert start_main(source(), only=["binary"]) == 0
    found = json.loads((made / "study.json").read_text())
    assert [run["status"] for run in found["runs"]] == ["finished"] * 5
    assert found["runs"][1]["commands"][0].startswith("python -m speciarl_jax.train")
    assert found["resamples"] == 10_000
    before = (made / "table.md").read_bytes()
    (made / "table.md").unlink()
    monkeypatch.setattr(command.figure, "files", lambda found: {})
    assert start_main(source(), report_only=True) == 0
    assert (made / "table.md").read_bytes() == before


@pytest.fixture
def no_figure(monkeypatch):
    """Drawing takes most of the time."""
    monkeypatch.setattr(command.figure, "files", lambda found: {})


def test_the_search_is_recorded_with_all_its_trials(
    start_main, source, no_figure, tmp_path, capsys
):
    search = ', search={"train.steps": (1, 2, 3)}'
    how = 'Search(trials=2, images={"domains": ("animal",)}, max_correctness_drop=1.0)'
    assert start_main(source(search, how), dry_run=True) == 0
    assert "binary: the runs of all seeds follow" in capsys.readouterr().out
    assert start_main(source(search, how)) == 0
    found = json.loads((tmp_path / "made/study.json").read_text())
    choice = found["search"]["binary"]
    assert [trial["trial"] for trial in choice["trials"]] == [0, 1]
    assert choice["chosen"] == choice["trials"][choice["trial"]]["overrides"]
    assert len(found["trials"]) == 3 and len(found["runs"]) == 5
    assert "## Search: binary" in (tmp_path / "made/table.md").read_text()


def test_a_changed_row_is_refused_before_any_work(start_main, source, no_figure):
    assert start_main(source()) == 0
    changed = source(overrides='{"train.steps": 7}')
    with pytest.raises(ValueError, match="train.steps: 60 -> 7"):
        start_main(changed, report_only=True)
    with pytest.raises(ValueError, match="not a bucket"):
        runner.folder_of("gs://bucket/study")


TINY = str(
    {
        "train.steps": 1,
        "train.batch_size": 4,
        "rollout.num_rollouts": 2,
        "evaluation.options.views": 1,
        "evaluation.batch_size": 16,
        "evaluation.best_of_batch_size": 16,
        "logging.writers": (),
    }
)


@pytest.mark.slow
def test_a_real_study_is_run_killed_resumed_and_reported(source, tmp_path):
    """Of the policy that ships: one step, some thirty images."""
    made, path = tmp_path / "made", source(overrides=TINY)
    arguments = ["speciarl_jax.tools.study", path, f"--workdir={made}", "--seeds=1"]

    def start(*more):
        return subprocess.Popen(
            [sys.executable, "-m", *arguments, *more],
            cwd=ROOT,
            env=os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    first = start()
    while not (made / "runs/SpeciaRL/seed_1/config.json").exists():
        assert first.poll() is None, first.stdout.read()
        time.sleep(0.2)
    first.send_signal(signal.SIGTERM)
    assert first.wait(600) == exit_codes.RESTART, first.stdout.read()
    noted = json.loads((made / "runs/SpeciaRL/seed_1/study_run.json").read_text())
    assert noted["status"] == "started"
    assert json.loads((made / "study.json").read_text())["sets"]["food"]["rows"]
    second = start()
    said, _ = second.communicate(timeout=1800)
    assert second.returncode == 0, said
    assert "[1/2] SpeciaRL, seed 1" in said  # the base is not evaluated again
    found = json.loads((made / "study.json").read_text())
    for one in found["sets"].values():
        rows = {row["name"]: row for row in one["rows"]}
        assert list(rows) == ["base", "base, best of 2", "SpeciaRL", "binary"]
        assert one["images"] > 20 and rows["binary"]["wanted"] == 2
        assert rows["binary"]["against_reference"]["seeds"] == [1]
        # A step of training changes little, and the samples are better than the greedy answer.
        scores = {name: row["scores"]["hm"]["value"] for name, row in rows.items()}
        assert scores["SpeciaRL"] == pytest.approx(scores["base"], abs=0.15)
    assert {run["status"] for run in found["runs"] if run["seed"] == 0} == {"missing"}
    assert not (made / "runs/SpeciaRL/seed_1/report.html").exists()
    for name in FILES:
        assert (made / name).stat().st_size > 500
