"""The seconds of a run that several processes worked on, and what its summary says of them."""

import json

import pytest

from speciarl_jax import train
from speciarl_jax.evaluation import metrics
from speciarl_jax.runtime import wall_clock


@pytest.fixture
def time(monkeypatch):
    """A clock that moves when it is told to."""

    class Time:
        now = 5000.0

        def time(self):
            return self.now

    made = Time()
    monkeypatch.setattr(wall_clock, "time", made)
    return made


def test_seconds_count_from_the_start_of_every_process_and_the_first_step_once(time):
    first = wall_clock.RunClock()
    time.now += 30  # loading, evaluation of the base
    first.step_done(1)
    time.now += 10
    state = json.loads(json.dumps(first.get_state()))
    assert state == {"seconds": 40.0, "first_step_seconds": 30.0}
    time.now += 500  # killed, and started again later
    second = wall_clock.RunClock()
    time.now += 20
    second.set_state(state)
    assert (second.earlier, second.first_step, second.moved) == (40.0, 30.0, False)
    second.step_done(8)
    time.now += 5
    assert second.get_state() == {"seconds": 65.0, "first_step_seconds": 30.0}
    want = {"steps": 9, "wall_seconds": 65.0, "first_step_seconds": 30.0}
    assert second.summary(9, {}) == want
    # A prolonged run replaces what it said before, of its own length too if it took steps.
    old = {"steps": 9, "wall_seconds": 1.0, "first_step_seconds": 1.0}
    assert second.summary(9, old) == second.summary(9, old | {"steps": 7}) == want


def test_checkpoints_of_older_versions_say_nothing_about_the_first_step(time):
    clock = wall_clock.RunClock()
    clock.set_state({"seconds": 40.0})
    clock.step_done(8)
    assert clock.summary(9, {}) == {"steps": 9, "wall_seconds": 40.0, "first_step_seconds": None}


def test_a_finished_run_that_is_started_again_keeps_its_times(time, tmp_path):
    path, scores = tmp_path / "summary.json", {"base": metrics.Score(0.5, 0.5, 0.5, {})}
    clock = wall_clock.RunClock()
    clock.step_done(1)
    time.now += 70
    train.write_summary(path, scores, 3, clock)
    whole = path.read_text()
    assert json.loads(whole)["wall_seconds"] == 70.0
    again = wall_clock.RunClock()
    again.set_state(clock.get_state())
    time.now += 9
    train.write_summary(path, scores, 3, again)
    assert path.read_text() == whole
    # Killed between its last checkpoint and its summary: nothing to keep.
    path.unlink()
    train.write_summary(path, scores, 3, again)
    assert json.loads(path.read_text())["wall_seconds"] == 79.0


def test_a_damaged_summary_is_named(time, tmp_path):
    (tmp_path / "summary.json").write_text('{"steps": ')
    with pytest.raises(ValueError, match="summary.json is no JSON .*delete it"):
        train.write_summary(tmp_path / "summary.json", {}, 3, wall_clock.RunClock())
