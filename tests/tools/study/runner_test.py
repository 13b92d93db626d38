"""What is run: once, what is missing, whatever fails; and what is refused."""

import json
import shutil
import threading

import pytest

from speciarl_jax.runtime.workdir_lock import WorkdirLock
from speciarl_jax.tools.study import Row, Search, execute, launchers, runner, search, state

ALL = [
    "base",
    "SpeciaRL, seed 0",
    "SpeciaRL, seed 1",
    "binary (RFT), seed 0",
    "binary (RFT), seed 1",
]


def run(plan, **options):
    """Runs a plan; returns what failed, the names of the runs that began, and all that was said."""
    said, changes = [], []
    failed = runner.run(plan, launchers.local, lambda: changes.append(1), said.append, **options)
    begun = [line.split("] ")[1].split(": runs")[0] for line in said if ": runs, log in" in line]
    assert len(changes) >= sum(": finished" in line for line in said)
    return failed, begun, said


def test_what_is_missing_is_run_and_what_is_there_is_not(plan_of):
    plan = plan_of()
    assert run(plan)[:2] == ([], ALL)
    assert all(plan.has_ended(one) for one in plan.runs())
    assert run(plan_of())[:2] == ([], [])
    shutil.rmtree(plan.planner.folder / "runs/SpeciaRL/seed_1")
    assert run(plan_of())[:2] == ([], ["SpeciaRL, seed 1"])


def test_a_run_without_its_results_is_not_finished(plan_of, tmp_path):
    run(plan_of())
    (tmp_path / "runs/base/evaluation/metrics.json").unlink()
    assert run(plan_of())[1] == ["base"]


def test_a_failed_run_is_told_with_its_last_lines_and_stops_no_other(plan_of, behave, tmp_path):
    behave(fail={"SpeciaRL/seed_0": 3}, say="a line\rthe memory is full")
    failed, begun, _ = run(plan_of())
    assert begun == ALL and len(failed) == 1
    assert "SpeciaRL, seed 0: FAILED" in failed[0] and "exit code 3" in failed[0]
    assert "\n    the memory is full" in failed[0] and "a line" not in failed[0]
    noted = json.loads((tmp_path / "runs/SpeciaRL/seed_0/study_run.json").read_text())
    assert (noted["status"], noted["exit_code"]) == ("failed", 3)
    # The next start tries again.
    behave()
    assert run(plan_of())[:2] == ([], ["SpeciaRL, seed 0"])


def test_a_program_that_ends_without_results_has_failed(plan_of, monkeypatch):
    monkeypatch.setattr(execute, "process_of", lambda *command: ["true"])
    failed, _, _ = run(plan_of(["base"]))
    assert "no results" in failed[0]


def test_a_changed_configuration_is_refused_by_key_and_remedy(plan_of, study):
    run(plan_of())
    rows = study().rows
    changed = (*rows[:2], Row(rows[2].name, rows[2].config, {"train.steps": 9}))
    with pytest.raises(ValueError, match="train.steps: 60 -> 9") as error:
        run(plan_of(["binary (RFT)"], rows_of_study=changed))
    assert "delete that folder" in str(error.value) and "runs/binary_RFT/seed_0" in str(error.value)


def test_a_run_of_an_older_version_stays_finished(plan_of, tmp_path):
    run(plan_of())
    path = tmp_path / "runs/SpeciaRL/seed_0/study_run.json"
    noted = json.loads(path.read_text())
    del noted["config"]["evaluation.images"], noted["config"]["train.stop_after"]
    path.write_text(json.dumps(noted))
    assert run(plan_of())[1] == []
    del noted["config"]["train.steps"]  # a key that there always was
    path.write_text(json.dumps(noted))
    with pytest.raises(ValueError, match="train.steps: None -> 60"):
        run(plan_of())


def test_results_that_no_study_wrote_are_refused(plan_of, tmp_path):
    folder = tmp_path / "runs/SpeciaRL/seed_0"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    with pytest.raises(ValueError, match="results that no study wrote"):
        run(plan_of())


def test_a_run_that_another_program_begins_meanwhile_is_no_stranger(plan_of, tmp_path, monkeypatch):
    planned = next(plan_of(["SpeciaRL"], [0]).runs())
    read = state.jsonl.read_object

    def begun_after_the_first_look(path, remedy):
        found = read(path, remedy)
        if not path.parent.exists():
            monkeypatch.setattr(state.jsonl, "read_object", read)
            state.note(tmp_path, planned, state.STARTED)
            (path.parent / "config.json").write_text("{}")
        return found

    monkeypatch.setattr(state.jsonl, "read_object", begun_after_the_first_look)
    assert state.status(tmp_path, planned) == state.STARTED


def test_two_programs_share_the_runs(plan_of, behave, tmp_path):
    """None is run twice, and both end when all are there."""
    gate = tmp_path / "gate"
    behave(wait_for=str(gate))
    plans, found = [plan_of(), plan_of()], []

    def work(plan):
        found.append(run(plan, look_every=0.05))

    threads = [threading.Thread(target=work, args=(plan,)) for plan in plans]
    for thread in threads:
        thread.start()
    while len(list((tmp_path / "claims").rglob("writer.lock"))) < 2:
        assert all(thread.is_alive() for thread in threads)  # both, until the gate opens
    gate.write_text("")
    for thread in threads:
        thread.join(60)
    ended = [line for _, _, said in found for line in said if "finished in" in line]
    assert sorted(line.split(":")[0] for line in ended) == sorted(ALL)
    assert all(failed == [] for failed, _, _ in found)
    logs = [path.read_text() for path in (tmp_path / "logs").rglob("*.log")]
    assert [text.count("$ python") for text in logs] == [1] * 5


def test_a_run_of_another_program_is_left_alone(plan_of, tmp_path):
    for place in ("claims/runs/SpeciaRL/seed_0", "runs/binary_RFT/seed_1"):
        (tmp_path / place).mkdir(parents=True)
    with (
        WorkdirLock(tmp_path / "claims/runs/SpeciaRL/seed_0", "study"),
        WorkdirLock(tmp_path / "runs/binary_RFT/seed_1", "train"),
    ):
        failed, _, said = run(plan_of(), wait=False)
    assert failed == [] and "SpeciaRL, seed 0, binary (RFT), seed 1" in said[-1]
    left = [one.name for one in plan_of().runs() if not plan_of().has_ended(one)]
    assert left == ["SpeciaRL, seed 0", "binary (RFT), seed 1"]


VALUES = {"optimizer.learning_rate": (1e-3, 2e-3, 4e-3)}


@pytest.fixture
def searched(plan_of, study):
    """A plan whose binary row has a search of three trials."""
    rows = study().rows
    searching = Row("binary (RFT)", "configs/binary.py:quickstart", search=VALUES)

    def searched(**changes):
        given = {"trials": 3, "images": {"domains": ("food",)}} | changes
        return plan_of(rows_of_study=(*rows[:2], searching), search=Search(**given))

    return searched


def test_trials_come_first_and_the_best_setting_runs_with_all_seeds(searched):
    plan = searched()
    assert plan.waiting() == ["binary (RFT)"]
    failed, begun, _ = run(plan)
    trials = [f"binary (RFT), trial {i}" for i in range(3)]
    assert failed == [] and begun == [*trials, *ALL] and plan.waiting() == []
    choice = plan.choice(plan.rows[2])
    scores = [trial["hm"] for trial in choice["trials"]]
    assert choice["trial"] == max(range(3), key=scores.__getitem__) and choice["rule"] == "hm"
    rate = VALUES["optimizer.learning_rate"][choice["trial"]]
    runs = list(plan.reported(plan.rows[2]))
    assert [one.config["optimizer.learning_rate"] for one in runs] == [rate, rate]


def test_a_setting_that_is_less_correct_than_the_base_is_not_chosen(searched, monkeypatch):
    plan = searched(max_correctness_drop=0.02)
    _, begun, _ = run(plan)
    assert begun[0] == "base on the images of the search"

    def choose(base, *trials):
        names = ["search/base/evaluation", *(f"search/binary_RFT/trial_{i}" for i in range(3))]
        made = [{"correctness": c, "hm": hm} for c, hm in (base, *trials)]
        scores = dict(zip(names, made, strict=True))
        monkeypatch.setattr(search, "_scores", lambda *_: scores)
        return plan.choice(plan.rows[2])

    found = choose((0.6, 0.5), (0.5, 0.9), (0.59, 0.6), (0.58, 0.7))
    assert [trial["allowed"] for trial in found["trials"]] == [False, True, True]
    assert found["trial"] == 2 and "at most 0.02 below the base's" in found["rule"]
    found = choose((0.6, 0.5), (0.5, 0.9), (0.55, 0.6), (0.4, 0.7))
    assert found["trial"] == 1 and found["rule"].startswith("correctness, as it fell")


def test_a_trial_that_diverges_counts_and_one_that_fails_otherwise_does_not(searched, behave):
    behave(fail={"trial_1": 78}, say="FloatingPointError: not finite")
    plan = searched()
    failed, _, _ = run(plan)
    assert len(failed) == 1
    choice = plan.choice(plan.rows[2])
    assert choice["trial"] != 1 and choice["trials"][1]["status"] == "failed"
    assert "hm" not in choice["trials"][1] and not choice["trials"][1]["allowed"]
    assert run(searched())[1] == []


def test_a_row_waits_while_a_trial_is_missing(searched, behave):
    behave(fail={"trial_1": 1})
    plan = searched()
    failed, begun, _ = run(plan)
    assert len(failed) == 1 and plan.waiting() == ["binary (RFT)"]
    assert not any(name.startswith("binary (RFT), seed") for name in begun)
    assert {"base", "SpeciaRL, seed 0"} <= set(begun)


def test_what_a_run_was_made_with_is_noted(plan_of, tmp_path):
    run(plan_of(["SpeciaRL"], [1]))
    noted = json.loads((tmp_path / "runs/SpeciaRL/seed_1/study_run.json").read_text())
    assert noted["versions"]["jax"] and noted["config"]["seed"] == 1
    assert noted["commands"][0].startswith("python -m speciarl_jax.train --config=configs/")
    assert noted["status"] == state.FINISHED and noted["seconds"] >= 0
