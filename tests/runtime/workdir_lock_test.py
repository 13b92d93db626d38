"""One program writes to a workdir: who is refused, and which locks are taken over."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest
import small_run
from etils import epath

from speciarl_jax.runtime import exit_codes, process_identity, workdir_lock
from speciarl_jax.runtime.new_folder import new_folder
from speciarl_jax.runtime.workdir_lock import WorkdirLock

HOLDER = """
import sys, time
from speciarl_jax.runtime.workdir_lock import WorkdirLock
with WorkdirLock(sys.argv[1], "train"):
    print("held", flush=True)
    time.sleep(600)
"""


def lock_of(folder):
    return json.loads((folder / workdir_lock.FILE).read_text())


def leave_lock(folder, **changes):
    """Writes the lock of this process, changed, as one that was killed leaves it behind."""
    record = process_identity.this_process()
    record |= {"program": "train", "taken": "2026-01-02 03:04:05", "token": "another"}
    (folder / workdir_lock.FILE).write_text(json.dumps(record | changes))


@pytest.fixture
def quick(monkeypatch):
    """Waits of tenths of a second."""
    monkeypatch.setattr(workdir_lock, "LOST_AFTER", 0.4)
    monkeypatch.setattr(workdir_lock, "RENEW_EVERY", 0.05)
    monkeypatch.setattr(workdir_lock, "_LOOK_EVERY", 0.02)


def test_a_second_writer_is_refused_and_told_who_writes_and_how_to_go_on(tmp_path):
    with WorkdirLock(tmp_path, "train"):
        assert lock_of(tmp_path)["pid"] == os.getpid()
        with pytest.raises(ValueError) as refused, WorkdirLock(tmp_path, "evaluate"):
            pass
        said = str(refused.value)
        known = f"`train` (process {os.getpid()} on {socket.gethostname()}, since 20"
        assert known in said and "another --workdir" in said
        assert f"delete {tmp_path / workdir_lock.FILE}" in said
        assert exit_codes.code_of(refused.value, several=False) == exit_codes.REFUSED
        assert lock_of(tmp_path)["program"] == "train"
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_the_lock_is_given_back_after_an_error(tmp_path, error):
    with pytest.raises(error), WorkdirLock(tmp_path, "train"):
        raise error
    assert not list(tmp_path.iterdir())
    with WorkdirLock(tmp_path, "train"):
        pass


def test_the_lock_of_a_killed_process_is_taken_over(tmp_path, caplog):
    path = os.pathsep.join(sys.path)
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path)],
        stdout=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": path, "JAX_PLATFORMS": "cpu"},
    )
    try:
        assert process.stdout.readline() == b"held\n"
        with (
            pytest.raises(ValueError, match=f"process {process.pid} on"),
            WorkdirLock(tmp_path, "train"),
        ):
            pass
        process.send_signal(signal.SIGKILL)
        # Not yet waited for: the system still knows its number.
        until = time.monotonic() + 20
        while process_identity.started(process.pid) != "ended" and time.monotonic() < until:
            time.sleep(0.01)
        with WorkdirLock(tmp_path, "train"):
            assert lock_of(tmp_path)["pid"] == os.getpid()
    finally:
        process.kill()
        process.wait()
    assert "takes over from `train`" in caplog.text and "that process has ended" in caplog.text


@pytest.mark.parametrize(
    "changes",
    [
        # A container that was started again: the same host, and process 1 as before.
        {"started": "tick 1"},
        # The same process, which `exec` made another program of.
        {},
        {"pid": 2**22 + 1},
        {"pid": -1},
    ],
)
def test_a_process_that_only_has_the_number_of_the_holder_is_not_it(tmp_path, changes, caplog):
    leave_lock(tmp_path, **changes)
    begun = time.monotonic()
    with WorkdirLock(tmp_path, "train"):
        assert time.monotonic() - begun < workdir_lock.LOST_AFTER / 4
        assert lock_of(tmp_path)["token"] != "another"
    assert "takes over" in caplog.text


def test_a_living_process_of_this_host_keeps_its_lock_however_long_it_says_nothing(tmp_path):
    parent = {"pid": os.getppid(), "started": process_identity.started(os.getppid())}
    leave_lock(tmp_path, **parent, renewed=0.0)
    with pytest.raises(ValueError, match=f"process {os.getppid()}"), WorkdirLock(tmp_path, "train"):
        pass


ELSEWHERE = [{"host": "elsewhere"}, {"boot": "another"}, {"pid_namespace": "another"}]


@pytest.mark.parametrize("place", ELSEWHERE)
def test_another_host_that_says_nothing_counts_as_gone_after_a_while(tmp_path, quick, place):
    leave_lock(tmp_path, **place, renewed=time.time())
    begun = time.monotonic()
    with WorkdirLock(tmp_path, "train"):
        assert time.monotonic() - begun >= workdir_lock.LOST_AFTER


def test_another_host_that_said_nothing_for_long_is_not_waited_for(tmp_path):
    leave_lock(tmp_path, host="elsewhere", renewed=time.time() - 11 * workdir_lock.LOST_AFTER)
    begun = time.monotonic()
    with WorkdirLock(tmp_path, "train"):
        assert time.monotonic() - begun < workdir_lock.LOST_AFTER / 4


def test_another_host_that_renews_its_lock_keeps_it(tmp_path, quick, monkeypatch):
    here = process_identity.this_process()
    with WorkdirLock(tmp_path, "train"):
        first = lock_of(tmp_path)["renewed"]
        monkeypatch.setattr(
            process_identity, "this_process", lambda: here | {"host": "this one", "boot": "b"}
        )
        monkeypatch.setattr(process_identity, "same_place", lambda record: False)
        with pytest.raises(ValueError, match="is being written to"), WorkdirLock(tmp_path, "train"):
            pass
        assert lock_of(tmp_path)["renewed"] > first


@pytest.mark.parametrize("content", ["", '{"pid": ', "[]"])
def test_a_damaged_lock_is_taken_over_after_a_while(tmp_path, quick, content):
    (tmp_path / workdir_lock.FILE).write_text(content)
    with WorkdirLock(tmp_path, "train"):
        assert lock_of(tmp_path)["pid"] == os.getpid()


def test_who_finds_another_in_its_place_ends_and_leaves_the_lock_alone(tmp_path, quick):
    lost = threading.Event()
    with WorkdirLock(tmp_path, "train", on_lost=lost.set):
        leave_lock(tmp_path)
        assert lost.wait(20)
    assert lock_of(tmp_path)["token"] == "another"


def test_a_lock_that_was_deleted_is_made_again(tmp_path, quick):
    with WorkdirLock(tmp_path, "train") as lock:
        (tmp_path / workdir_lock.FILE).unlink()
        until = time.monotonic() + 20
        while not lock.path.exists() and time.monotonic() < until:
            time.sleep(0.01)
        assert lock_of(tmp_path)["pid"] == os.getpid()
    assert not list(tmp_path.iterdir())


def test_who_is_late_to_clear_a_stale_lock_leaves_that_of_the_next_program(tmp_path):
    path = epath.Path(tmp_path) / workdir_lock.FILE
    leave_lock(tmp_path, pid=2**22 + 1)
    stale = workdir_lock._read(path)
    moved, rename = [], type(path).rename
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(path), "rename", lambda *a: moved.append(a) or rename(*a))
        with WorkdirLock(tmp_path, "train"):
            assert len(moved) == 1
            before = path.read_bytes()
            # Not even for a moment is it away: a third program would find no lock.
            workdir_lock._clear(path, stale)
            assert len(moved) == 1 and path.read_bytes() == before


@pytest.mark.parametrize("hard_links", [True, False])
def test_of_many_that_find_a_stale_lock_one_takes_it_over(tmp_path, monkeypatch, hard_links):
    if not hard_links:

        def none(*names):
            raise OSError("this disk has none")

        monkeypatch.setattr(workdir_lock.os, "link", none)
    leave_lock(tmp_path, pid=2**22 + 1)
    ready, release = threading.Barrier(8), threading.Event()
    holders, refused = [], []

    def start():
        ready.wait()
        try:
            with WorkdirLock(tmp_path, "train") as lock:
                holders.append(lock)
                release.wait(60)
        except ValueError as error:
            refused.append(error)

    threads = [threading.Thread(target=start) for _ in range(8)]
    for thread in threads:
        thread.start()
    until = time.monotonic() + 60
    while len(holders) + len(refused) < 8 and time.monotonic() < until:
        time.sleep(0.01)
    release.set()
    for thread in threads:
        thread.join()
    assert (len(holders), len(refused)) == (1, 7)
    assert not list(tmp_path.iterdir())


ONE_OF_TWO = """
import sys, types
from speciarl_jax.runtime import exit_codes, multihost, workdir

def main(argv):
    multihost.start(types.SimpleNamespace(
        distributed=False, coordinator=f"127.0.0.1:{argv[1]}", num_processes=2,
        process_id=int(argv[2]), heartbeat_timeout=60,
    ))
    with workdir.writing(argv[3], "train") as folder:
        print("writes", flush=True)

exit_codes.guarded(main)(sys.argv)
"""


@pytest.mark.slow
@pytest.mark.parametrize("held", [True, False])
def test_of_two_processes_the_first_takes_the_lock_for_both(tmp_path, start, held):
    with contextlib.ExitStack() as stack:
        if held:
            stack.enter_context(WorkdirLock(tmp_path, "evaluate"))
        port = small_run.free_port()
        both = [start("-c", ONE_OF_TWO, port, number, tmp_path) for number in range(2)]
        for process in both:
            said = process.communicate(timeout=300)[0]
            assert process.returncode == (exit_codes.REFUSED if held else 0), said
            assert ("is being written to by `evaluate`" in said) == held
            assert ("writes\n" in said) == (not held)
    assert not list(tmp_path.iterdir())


# A folder that is made as a whole.


def test_a_new_folder_appears_when_all_is_written_and_keeps_runs_away(tmp_path):
    out = tmp_path / "out"
    with new_folder(out) as folder:
        (folder / "a").write_text("1")
        with pytest.raises(ValueError, match="`convert`"), WorkdirLock(out, "train"):
            pass
        assert not (out / "a").exists()
    assert [path.name for path in out.iterdir()] == ["a"]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    with pytest.raises(ValueError, match="exists already and is not empty"), new_folder(out):
        pass
    assert [path.name for path in out.iterdir()] == ["a"]


def test_a_new_folder_is_refused_where_a_run_begins(tmp_path):
    with WorkdirLock(tmp_path, "train"):
        with (
            pytest.raises(ValueError, match="written to by `train` .*Give another --out"),
            new_folder(tmp_path),
        ):
            pass
        assert lock_of(tmp_path)["program"] == "train"


def test_a_new_folder_leaves_nothing_after_an_error_and_mixes_with_nothing(tmp_path):
    with pytest.raises(KeyError), new_folder(tmp_path / "out"):
        raise KeyError
    assert not list(tmp_path.iterdir())
    with pytest.raises(ValueError, match="is not empty"), new_folder(tmp_path / "out") as folder:
        (folder / "a").write_text("")
        (tmp_path / "out" / "b").write_text("")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["b"]
