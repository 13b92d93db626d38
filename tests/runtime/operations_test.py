"""What keeps a run alive, and what it says when it cannot go on."""

import dataclasses
import errno
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small_run

import speciarl_jax
from speciarl_jax import train
from speciarl_jax.data import pipeline
from speciarl_jax.experiment import host_verification
from speciarl_jax.runtime import exit_codes, interrupts, multihost, preemption, step_timer
from speciarl_jax.runtime.checkpoint import Checkpoints
from speciarl_jax.runtime.workdir import open_workdir
from speciarl_jax.training import state as state_lib

pytestmark = pytest.mark.usefixtures("shared_programs")
STEPS = {"train__steps": 4, "checkpoint__save_every": 100, "train__profile_steps": 1}


def rows_of(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def without_times(rows):
    return [{k: v for k, v in row.items() if not k.startswith("time")} for row in rows]


def state_of(run, workdir, step=None):
    _, state, _ = state_lib.start(run)
    checkpoints = Checkpoints(workdir / "checkpoints", save_every=1, keep=9, create=False)
    state, _ = checkpoints.restore(state, {}, step)
    checkpoints.close()
    return small_run.arrays(state)


@pytest.fixture(scope="module")
def run_with(run, small_config):
    return lambda **changes: dataclasses.replace(run, config=small_config(**STEPS | changes))


@pytest.fixture(scope="module")
def calm(run_with, tmp_path_factory):
    """The workdir of a run that nothing disturbed."""
    workdir = tmp_path_factory.mktemp("calm")
    train.train(run_with(), workdir)
    return workdir


def tell(number):
    return lambda: os.kill(os.getpid(), number)


@pytest.fixture
def heeded():
    """A Ctrl-C is not ignored, as it is where these tests are a script's background job."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize(
    "number, error, said",
    [
        (signal.SIGTERM, exit_codes.Preempted, "step 1 of 4 is saved; start again"),
        (signal.SIGINT, exit_codes.Interrupted, "step 1 of 4 is saved; the same command goes on"),
    ],
)
def test_a_run_that_has_to_leave_saves_at_the_end_of_the_step_and_goes_on_to_the_same_bits(
    run, run_with, calm, tmp_path, heeded, number, error, said
):
    before = signal.getsignal(number)
    with pytest.raises(error, match=said) as left:
        train.train(run_with(), tmp_path, on_first_step=tell(number))
    assert type(left.value) is error
    assert signal.getsignal(number) is before
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["1"]
    train.train(run_with(), tmp_path)
    assert without_times(rows_of(tmp_path)) == without_times(rows_of(calm))
    got, want = state_of(run, tmp_path), state_of(run, calm)
    for name, value in want.items():
        assert got[name].tobytes() == value.tobytes(), name


def test_a_second_ctrl_c_ends_a_run_at_once(run_with, tmp_path, heeded):
    def twice():
        tell(signal.SIGINT)()
        tell(signal.SIGINT)()
        raise AssertionError("went on")

    with pytest.raises(KeyboardInterrupt):
        train.train(run_with(), tmp_path, on_first_step=twice)
    assert not list((tmp_path / "checkpoints").iterdir())


@pytest.mark.parametrize(
    "number, error", [(signal.SIGTERM, SystemExit), (signal.SIGINT, KeyboardInterrupt)]
)
def test_a_signal_after_the_last_look_at_it_is_not_lost(heeded, number, error):
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(exit_codes.RESTART))
    try:
        with pytest.raises(error), preemption.Notice() as notice:
            assert not notice.after_step()
            tell(number)()
    finally:
        signal.signal(signal.SIGTERM, before)


@pytest.mark.slow
def test_profiles_are_written_when_a_signal_or_a_file_asks(start_program, policy_folder, tmp_path):
    """In a process of its own: in a long-lived one XLA's profiler may crash."""
    (tmp_path / "profile_now").write_text("")
    given = {"policy": str(policy_folder), "workdir": str(tmp_path), "config": STEPS}
    process = start_program("profiled_program", **given)
    printed = process.communicate(timeout=600)[0]
    assert process.returncode == 0, printed
    assert not (tmp_path / "profile_now").exists()
    profiles = tmp_path / "profiles"
    assert sorted(p.name for p in profiles.iterdir()) == [
        "step_1_process_0",  # the file
        "step_2_process_0",  # the signal, after the first step of the process
    ]
    for folder in profiles.iterdir():
        assert (folder / "memory.prof").stat().st_size > 0
        assert [p for p in folder.rglob("*.xplane.pb") if p.stat().st_size > 1000]


@pytest.mark.slow
def test_the_stages_of_a_step_add_up_to_it(run_with, calm, tmp_path):
    for row in rows_of(calm):
        assert {k for k in row if k.startswith("time/")} == {"time/step", "time/device_idle"}
        assert 0 <= row["time/device_idle"] <= row["time/step"]
    train.train(run_with(train__fused=False, train__steps=3), tmp_path)
    for row in rows_of(tmp_path):
        parts = [row[f"time/{name}"] for name in (*step_timer.STAGES, "device_idle")]
        assert min(parts[:3]) > 0 and sum(parts) == pytest.approx(row["time/step"], rel=1e-6)


def test_the_timer_tells_work_from_waiting(monkeypatch):
    class Clock:
        now = 0.0

    class Later:
        """An array that exists at a moment."""

        def __init__(self, moment):
            self.moment = moment

        def block_until_ready(self):
            Clock.now = max(Clock.now, self.moment)

    monkeypatch.setattr(step_timer.time, "perf_counter", lambda: Clock.now)
    timer = step_timer.StepTimer()

    def step(begun, *ends):
        Clock.now = begun
        timer.begin()
        for stage, end in zip(("rollout", "rollout", "update"), ends[:-1], strict=False):
            timer.stage_done(stage, Later(end))
        timer.end(Later(ends[-1]))
        return timer.row()

    assert step(10.0, 12.0) == {"time/step": 2.0, "time/device_idle": 0.0}
    # Handed out three seconds after the devices had finished.
    row = step(15.0, 16.0, 20.0, 21.0)
    assert row == {
        "time/step": 9.0,
        "time/device_idle": 3.0,
        "time/rollout": 5.0,
        "time/update": 1.0,
    }
    timer.close()


def test_the_best_checkpoints_stay_and_a_wrong_metric_is_refused(run, run_with, tmp_path):
    best = {"checkpoint__save_every": 1, "checkpoint__keep": 1, "checkpoint__keep_best": 1}
    best |= {"checkpoint__best_metric": "rollout/completion_length", "checkpoint__best_mode": "min"}
    train.train(run_with(**best), tmp_path)
    lengths = {row["step"]: row["rollout/completion_length"] for row in rows_of(tmp_path)}
    shortest = min(lengths, key=lengths.get)
    kept = {int(p.name) for p in (tmp_path / "checkpoints").iterdir()}
    assert kept == {shortest, 4} or (shortest == 4 and kept == {4})
    with pytest.raises(ValueError, match="best_metric is 'fun', which is no metric .*'reward/mean"):
        other = run_with(checkpoint__keep_best=1, checkpoint__best_metric="fun")
        train.train(other, tmp_path / "other")


@pytest.mark.slow
def test_a_changed_configuration_goes_on_only_where_that_is_allowed(run_with, calm, tmp_path):
    shutil.copytree(calm, tmp_path, dirs_exist_ok=True)
    other = run_with(train__steps=5, loss__kl_coefficient=0.5)
    with pytest.raises(ValueError, match=r"loss.kl_coefficient: 0.01 -> 0.5(?s:.*)--allow_config"):
        train.train(other, tmp_path)
    train.train(other, tmp_path, allow_config_change=True)
    assert [row["step"] for row in rows_of(tmp_path)] == [1, 2, 3, 4, 5]


# A disk of 256 KiB.


@pytest.fixture
def small_disk(tmp_path):
    folder = tmp_path / "disk"
    folder.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "none", folder])
    if made.returncode:
        pytest.skip("only root may mount a small disk")
    yield folder
    subprocess.run(["umount", folder], check=True)


def large(number):
    values = np.random.default_rng(number).normal(size=(150, 200)).astype(np.float32)
    return {"lora": jnp.asarray(values)}


def test_a_full_disk_stops_the_run_and_leaves_the_checkpoint_before(small_disk):
    checkpoints = Checkpoints(small_disk, save_every=1, keep=3)
    checkpoints.save(1, large(1), {}, {})
    checkpoints.wait()
    with pytest.raises(
        exit_codes.StorageError, match=r"could not be written .*Whole ones there: \[1\]"
    ):
        checkpoints.save(2, large(2), {}, {})
        checkpoints.wait()
    again = Checkpoints(small_disk, save_every=1, keep=3)
    step, state, _ = again.resume(large(0), {})
    assert step == 1
    np.testing.assert_array_equal(state["lora"], large(1)["lora"])
    again.close()
    (small_disk / "filler").write_bytes(b"." * (shutil.disk_usage(small_disk).free // 4096 * 4096))
    with pytest.raises(ValueError, match="cannot be written to .No space left.*free space"):
        open_workdir(str(small_disk / "workdir"))


def test_a_disk_that_becomes_read_only_stops_the_run(small_disk):
    checkpoints = Checkpoints(small_disk, save_every=1, keep=3)
    checkpoints.save(1, large(1), {}, {})
    checkpoints.wait()
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    with pytest.raises(exit_codes.StorageError, match="make the folder writable"):
        checkpoints.save(2, large(2), {}, {})
        checkpoints.wait()
    with pytest.raises(ValueError, match="cannot be written to .Read-only file system"):
        open_workdir(str(small_disk / "workdir"))


# Exit codes, and the flags of several processes.

FLAGS = {"distributed": False, "coordinator": None, "num_processes": None, "process_id": None}


@pytest.mark.parametrize(
    "error, several, code",
    [
        (exit_codes.Preempted(), False, exit_codes.RESTART),
        (exit_codes.Interrupted(), True, interrupts.CODE),
        (KeyboardInterrupt(), False, interrupts.CODE),
        (exit_codes.RefusedByAll(), True, exit_codes.REFUSED),
        (exit_codes.RestartNeeded(), True, exit_codes.RESTART),
        (exit_codes.StorageError("full"), False, exit_codes.STORAGE),
        (OSError(errno.ENOSPC, "full"), False, exit_codes.STORAGE),
        (ConnectionResetError(errno.ECONNRESET, "gone"), False, 1),
        (ValueError(), True, exit_codes.REFUSED),
        (TypeError(), False, exit_codes.REFUSED),
        (FloatingPointError(), False, exit_codes.REFUSED),
        (jax.errors.JaxRuntimeError("Gloo: connection closed"), True, exit_codes.RESTART),
        (jax.errors.JaxRuntimeError("INTERNAL: no luck"), False, 1),
        (
            jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory"),
            False,
            exit_codes.REFUSED,
        ),
        (jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory"), True, exit_codes.REFUSED),
        (host_verification.JudgeUnavailable("no verdict"), False, exit_codes.RESTART),
        (host_verification.JudgeUnavailable("no verdict"), True, exit_codes.RESTART),
        (RuntimeError(), True, 1),
    ],
)
def test_an_error_has_the_exit_code_that_launchers_expect(error, several, code):
    assert exit_codes.code_of(error, several) == code


def test_a_program_ends_with_these_codes():
    program = (
        "import hashlib, os, signal, sys, threading, time\nfrom absl import app\nimport jax\n"
        "from speciarl_jax.runtime import exit_codes\n"
        "def main(argv):\n"
        # Connecting failed half way: who asks for the devices now waits for the others.
        "    if argv[1] == 'late':\n"
        "        jax.distributed.is_initialized = lambda: True\n"
        "        jax.process_count = jax.process_index = lambda: os._exit(3)\n"
        "        raise jax.errors.JaxRuntimeError('DEADLINE_EXCEEDED')\n"
        "    if argv[1] == 'term': os.kill(os.getpid(), signal.SIGTERM); print('went on')\n"
        "    if argv[1] == 'memory': jax.numpy.zeros(1 << 50)\n"
        "    if argv[1] == 'int': os.kill(os.getpid(), signal.SIGINT); print('went on')\n"
        # A library that fails while it is closed.
        "    if argv[1] == 'close':\n"
        "        try: os.kill(os.getpid(), signal.SIGINT); time.sleep(60)\n"
        "        finally: raise RuntimeError('cannot be closed')\n"
        # The main thread is where Python can handle no signal. Of two that come while it does not
        # run, on a busy machine, the system makes one: then the next one is the second.
        "    if argv[1] == 'twice':\n"
        "        for seconds in (0.2, 0.4, 5, 10, 20):\n"
        "            threading.Timer(seconds, os.kill, (os.getpid(), signal.SIGINT)).start()\n"
        "        hashlib.pbkdf2_hmac('sha256', b'a', b'b', 2 * 10**9)\n"
        "    left = exit_codes.Preempted('saved')\n"
        "    stopped = exit_codes.Interrupted('all saved')\n"
        "    errors = {'value': ValueError('too big'), 'left': left, 'stopped': stopped}\n"
        "    errors['all'] = exit_codes.RefusedByAll('by all')\n"
        "    raise errors[argv[1]]\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "app.run(exit_codes.guarded(main))\n"
    )
    by_ctrl_c = ("int", "close", "twice", "stopped")
    running = {
        name: subprocess.Popen(
            [sys.executable, "-c", program, name],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "JAX_PLATFORMS": "cpu"},
        )
        for name in ("value", "all", "left", "term", "late", "memory", *by_ctrl_c)
    }
    said = {name: process.communicate(timeout=120)[0] for name, process in running.items()}
    assert {name: process.returncode for name, process in running.items()} == {
        "value": exit_codes.REFUSED,
        "all": exit_codes.REFUSED,
        "left": exit_codes.RESTART,
        "term": exit_codes.RESTART,
        "late": exit_codes.RESTART,
        "memory": exit_codes.REFUSED,
        # A shell reports 130 for all of them, and ends its loop.
        **{"int": -signal.SIGINT, "close": -signal.SIGINT, "stopped": -signal.SIGINT},
        "twice": interrupts.CODE,
    }, said
    assert "by all" in said["all"] and "Traceback" not in said["all"]
    for name in by_ctrl_c:
        assert "Traceback" not in said[name] and "went on" not in said[name], said[name]
    assert "the same command goes on" in said["int"] and "all saved" in said["stopped"]
    assert "RuntimeError: cannot be closed" in said["close"]
    assert "again ends it at once" in said["twice"] and "Ctrl-C again" in said["twice"]
    for key in (
        *(
            "rollout.cache_bytes",
            "rollout.max_images_per_chunk",
            "train.micro_batches",
            "train.remat",
        ),
    ):
        assert f"config.{key}" in said["memory"] and key not in said["late"]
    assert "ValueError: too big" in said["value"] and "Traceback" not in said["left"]
    assert "Traceback" in said["late"] and "DEADLINE_EXCEEDED" in said["late"]
    assert "saved" in said["left"] and "went on" not in said["term"]


@pytest.mark.parametrize(
    "error, code, said",
    [
        (None, 3, ""),
        (ValueError("too big"), exit_codes.REFUSED, "tool: too big\n"),
        (exit_codes.StorageError("full"), exit_codes.REFUSED, "tool: full\n"),
    ],
)
def test_a_tool_refuses_in_one_line(monkeypatch, capsys, error, code, said):
    def main(argv):
        if error:
            raise error
        return 3

    def interrupted(argv):
        raise KeyboardInterrupt

    monkeypatch.setattr(exit_codes.app, "run", lambda main: sys.exit(main([])))
    with pytest.raises(SystemExit) as ended:
        exit_codes.run_tool("tool", main, (ValueError, exit_codes.StorageError))
    assert ended.value.code == code and capsys.readouterr().err == said
    with pytest.raises(KeyError):
        exit_codes.run_tool("tool", lambda argv: {}["a mistake of the program"])
    monkeypatch.setattr(interrupts, "end", lambda: sys.exit(interrupts.CODE))
    with pytest.raises(SystemExit) as ended:
        exit_codes.run_tool("tool", interrupted)
    assert ended.value.code == interrupts.CODE and capsys.readouterr().err == "tool: interrupted\n"


def test_every_tool_refuses_alike():
    """Each program but those with processes, by the file that it is run from."""
    programs = set()
    for path in sorted(pathlib.Path(speciarl_jax.__file__).parent.rglob("*.py")):
        text = path.read_text()
        # `speciarl` itself hands on to the others.
        own = path.parent.name == "speciarl_jax" and path.stem == "__main__"
        if 'if __name__ == "__main__":' in text and not own:
            name = path.parent.name if path.stem == "__main__" else path.stem
            guarded = "app.run(exit_codes.guarded(main))" in text
            assert guarded != (f'exit_codes.run_tool("{name}", main' in text), path
            programs.add(name)
    assert {"train", "evaluate", "predict", "convert", "compare"} <= programs


def test_a_cluster_whose_processes_come_too_late_is_not_taken_for_none(monkeypatch):
    def late(**times):
        raise jax.errors.JaxRuntimeError("DEADLINE_EXCEEDED: Barrier timed out")

    monkeypatch.setattr(jax.distributed, "initialize", late)
    with pytest.raises(jax.errors.JaxRuntimeError, match="DEADLINE"):
        multihost.start(types.SimpleNamespace(**FLAGS | {"distributed": True}, heartbeat_timeout=9))


@pytest.mark.parametrize(
    "given, said",
    [
        ({"coordinator": "a:1"}, "--num_processes, --process_id does not go with the rest"),
        ({"process_id": 0, "num_processes": 2}, "--coordinator does not go with the rest"),
        (
            {"distributed": True, "coordinator": "a:1", "num_processes": 1, "process_id": 0},
            "--distributed does not go with the rest",
        ),
        (
            {"coordinator": "a:1", "num_processes": 2, "process_id": 2},
            "--process_id=2 with --num_processes=2: .* from 0 to 1",
        ),
        (
            {"coordinator": "host", "num_processes": 2, "process_id": 0},
            "--coordinator=host is not HOST:PORT",
        ),
    ],
)
def test_flags_of_several_processes_that_do_not_fit_are_refused(given, said):
    flags = types.SimpleNamespace(**FLAGS | given, heartbeat_timeout=10)
    with pytest.raises(ValueError, match=said):
        multihost.start(flags)
    assert not jax.distributed.is_initialized()


def test_one_process_needs_no_flags():
    multihost.start(types.SimpleNamespace(**FLAGS, heartbeat_timeout=10))
    assert not jax.distributed.is_initialized()


def test_the_position_of_the_data_is_the_same_for_another_number_of_processes():
    def streams(count):
        return [
            pipeline.training_batches(
                lambda epoch: range(20), list, batch_size=8, seed=0, workers=1, process=p,
                processes=count,
            )
            for p in range(count)
        ]  # fmt: skip

    (one,), two = streams(1), streams(2)
    for _ in range(5):  # into the second epoch
        next(one), [next(stream) for stream in two]
    state = two[0].get_state()
    assert pipeline.state_for(state, 2, 1) == one.get_state()
    assert pipeline.state_for(one.get_state(), 1, 2) == state
    (fresh,) = streams(1)
    fresh.set_state(pipeline.state_for(state, 2, 1))
    assert next(fresh) == next(one)
    with pytest.raises(ValueError, match="resume with 2 processes"):
        pipeline.state_for({"other": 3}, 2, 1)
