"""Two processes, killed at random moments and started again, end in the bits of a calm run."""

import dataclasses
import json
import random
import shutil
import signal
import subprocess
import time

import numpy as np
import pytest
import small_run

from speciarl_jax import train
from speciarl_jax.runtime import exit_codes
from speciarl_jax.runtime.checkpoint import Checkpoints
from speciarl_jax.training import state as state_lib

pytestmark = pytest.mark.slow

STEPS = 60
CONFIG = {"train__steps": STEPS, "checkpoint__save_every": 2, "checkpoint__keep": 2}
MESH = {"mesh__data": 2, "mesh__fsdp": 2}


def rows_of(workdir):
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if not k.startswith("time")} for row in rows]


def state_of(run, workdir):
    _, state, _ = state_lib.start(run)
    checkpoints = Checkpoints(workdir / "checkpoints", save_every=1, keep=9, create=False)
    state, _ = checkpoints.restore(state, {})
    checkpoints.close()
    return small_run.arrays(state)


@pytest.fixture(scope="module")
def start_both(policy_folder, start_program):
    """Workdir -> two processes with two devices each that go on from its last checkpoint."""

    def start_both(workdir, **changes):
        port = small_run.free_port()
        return [
            start_program(
                "resumable_program",
                devices=2,
                policy=str(policy_folder),
                workdir=str(workdir),
                config=CONFIG | MESH | changes,
                process=process,
                processes=2,
                port=port,
            )
            for process in range(2)
        ]

    return start_both


def finish(both):
    printed = [process.communicate(timeout=900)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0], "\n".join(printed)


@pytest.fixture(scope="module")
def calm(start_both, tmp_path_factory):
    """The workdir of a run that nothing disturbed."""
    workdir = tmp_path_factory.mktemp("calm")
    finish(start_both(workdir))
    assert [row["step"] for row in rows_of(workdir)] == list(range(1, STEPS + 1))
    return workdir


def steps_of(workdir):
    path = workdir / "metrics.jsonl"
    return path.read_text().count("\n") if path.exists() else 0


def one_life(both, workdir, rng):
    """Starts, kills one process at a random moment, waits for the other.

    Returns:
      The signal, whether steps were being taken, and what the two ended with; None if they finished
      before the moment came.
    """
    sent, victim = rng.choice([signal.SIGKILL, signal.SIGTERM]), rng.choice(both)
    before, begun, training = steps_of(workdir), time.monotonic(), rng.random() < 0.75
    if training:  # somewhere between two steps, in a step, or while a checkpoint is written
        while steps_of(workdir) <= before and all(p.poll() is None for p in both):
            time.sleep(0.01)
        time.sleep(rng.uniform(0, 0.3))
    else:  # somewhere on the way there
        time.sleep(rng.uniform(0, 15))
    if any(process.poll() is not None for process in both):
        finish(both)
        return None
    victim.send_signal(sent)
    codes, printed = [], []
    for process in sorted(both, key=lambda p: p is not victim):
        try:
            printed.append(process.communicate(timeout=120 if training else 30)[0])
        except subprocess.TimeoutExpired:
            # It waits for a process that was never there; `srun` and JobSet end it so too.
            assert not training, "the other process went on without the one that was killed"
            process.kill()
            printed.append(process.communicate()[0])
        codes.append(process.returncode)
    print(
        sent.name,
        "training" if training else "starting",
        codes,
        steps_of(workdir),
        f"{time.monotonic() - begun:.0f} s",
        flush=True,
    )
    assert not {exit_codes.REFUSED, exit_codes.STORAGE} & set(codes), "\n".join(printed)
    if training and sent == signal.SIGTERM:
        assert set(codes) <= {0, exit_codes.RESTART}, "\n".join(printed)
    elif training:
        assert codes[0] == -signal.SIGKILL and codes[1] != 0
    return sent, training, codes


@pytest.mark.parametrize("kills", [2, pytest.param(20, marks=pytest.mark.nightly)])
def test_a_run_that_is_killed_again_and_again_ends_in_the_same_bits(
    run, calm, start_both, tmp_path, kills
):
    rng, lives = random.Random(kills), []
    while len(lives) < kills:
        life = one_life(start_both(tmp_path), tmp_path, rng)
        if life is None:
            break
        lives.append(life)
    assert len(lives) == kills, f"the run was over after {len(lives)} kills"
    finish(start_both(tmp_path))
    assert rows_of(tmp_path) == rows_of(calm)
    got, want = state_of(run, tmp_path), state_of(run, calm)
    assert got.keys() == want.keys() and int(want[".step"]) == STEPS
    for name, value in want.items():
        assert got[name].tobytes() == value.tobytes(), name
    assert not list((tmp_path / "checkpoints").glob("damaged_*"))


def test_a_run_of_two_processes_goes_on_in_one(run, small_config, start_both, tmp_path):
    whole, part = tmp_path / "whole", tmp_path / "part"
    finish(start_both(whole, train__steps=4, checkpoint__keep=4))
    shutil.copytree(whole, part)
    shutil.rmtree(part / "checkpoints" / "4")
    one = dataclasses.replace(run, config=small_config(**CONFIG | {"train__steps": 4}))
    train.train(one, part)
    got, want = state_of(run, part), state_of(run, whole)
    assert int(got[".step"]) == 4
    for name, value in want.items():
        np.testing.assert_allclose(got[name], value, rtol=0, atol=2e-5, err_msg=name)
    for mine, theirs in zip(rows_of(part), rows_of(whole), strict=True):
        assert mine["data/skipped"] == theirs["data/skipped"]
        assert mine["rollout/completion_length"] == pytest.approx(
            theirs["rollout/completion_length"]
        )
        assert mine["reward/mean"] == pytest.approx(theirs["reward/mean"])


def test_a_ctrl_c_in_one_of_two_processes_ends_both_with_all_saved(start_both, tmp_path):
    both = start_both(tmp_path, checkpoint__save_every=1000)
    while not steps_of(tmp_path) and all(process.poll() is None for process in both):
        time.sleep(0.01)
    both[1].send_signal(signal.SIGINT)
    printed = [process.communicate(timeout=300)[0] for process in both]
    assert [process.returncode for process in both] == [-signal.SIGINT] * 2, "\n".join(printed)
    saved = max(int(path.name) for path in (tmp_path / "checkpoints").iterdir())
    assert saved == rows_of(tmp_path)[-1]["step"] < STEPS
    for said in printed:
        assert f"interrupted: step {saved} of {STEPS} is saved; the same command goes on" in said
        assert "Traceback" not in said
