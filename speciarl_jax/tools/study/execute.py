"""Runs one planned run in processes of its own, unless another program does."""

import pathlib
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import NamedTuple

from absl import logging

from speciarl_jax.runtime import exit_codes, interrupts
from speciarl_jax.runtime.workdir_lock import WorkdirLock
from speciarl_jax.tools.study import state
from speciarl_jax.tools.study.plan import Planned

BUSY = "busy"


class Result(NamedTuple):
    """What became of a run."""

    status: str  # `state.FINISHED`, `state.FAILED`, or `BUSY`
    seconds: float = 0.0
    exit_code: int | None = None  # of the process that failed; negative: the signal that ended it
    lines: Sequence[str] = ()  # the last that it wrote; or who is busy with it
    log: str = ""  # "" if nothing was run


class Terminated(SystemExit):
    """The tool was asked to end (SIGTERM); what runs has saved what it has."""

    def __init__(self):
        super().__init__(exit_codes.RESTART)


def on_sigterm(*_: object) -> None:
    """Is the handler of SIGTERM of the tool."""
    raise Terminated


def log_of(folder: pathlib.Path, planned: Planned) -> pathlib.Path:
    """Returns the file with what the processes of a run write."""
    return folder / "logs" / f"{planned.folder}.log"


def process_of(program: str, *arguments: str) -> list[str]:
    """Returns the command of the process that runs a program of this package."""
    return [sys.executable, "-m", f"speciarl_jax.{program}", *arguments]


def run(folder: pathlib.Path, planned: Planned) -> Result:
    """Runs what is missing of a run, and notes what became of it.

    Only one program works on a run: it holds the lock of a folder in `claims` meanwhile.

    Raises:
      ValueError: there are results of another configuration.
      KeyboardInterrupt, Terminated: the process of the run was told, too, and has ended.
    """
    claim, workdir = folder / "claims" / planned.folder, folder / planned.folder
    claim.mkdir(parents=True, exist_ok=True)
    children: list[subprocess.Popen] = []

    def lost() -> None:
        for child in children:
            child.terminate()

    try:
        lock = WorkdirLock(claim, "study", on_lost=lost).__enter__()
    except ValueError as error:
        return Result(BUSY, lines=[str(error)])
    try:
        # Another program may have ended it since it was planned.
        if state.status(folder, planned) == state.FINISHED:
            return Result(state.FINISHED)
        workdir.mkdir(parents=True, exist_ok=True)
        try:
            # A process whose study was killed may still be at work.
            with WorkdirLock(workdir, "study"):
                pass
        except ValueError as error:
            return Result(BUSY, lines=[str(error)])
        return _run(folder, planned, children)
    finally:
        lock.release()


def _run(folder: pathlib.Path, planned: Planned, children: list[subprocess.Popen]) -> Result:
    begun, log = time.monotonic(), log_of(folder, planned)
    state.note(folder, planned, state.STARTED)
    log.parent.mkdir(parents=True, exist_ok=True)

    def seconds() -> float:
        return time.monotonic() - begun

    for command, shown in zip(planned.commands, planned.shown(), strict=True):
        with log.open("ab") as file:
            file.write(f"$ {shown}\n".encode())
            file.flush()
            # In a session of its own: a Ctrl-C reaches it once, through this program.
            child = subprocess.Popen(
                process_of(*command),
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            children.append(child)
            try:
                code = _wait(child)
            except BaseException:
                state.note(folder, planned, state.STARTED, seconds=seconds())
                raise
        if code:
            lines, spent = state.tail(log), seconds()
            failed = {"exit_code": code, "lines": lines, "log": str(log)}
            state.note(folder, planned, state.FAILED, seconds=spent, **failed)
            return Result(state.FAILED, spent, **failed)
    spent = seconds()
    state.note(folder, planned, state.FINISHED, seconds=spent)
    if state.status(folder, planned) != state.FINISHED:
        failed = {"exit_code": 0, "lines": state.tail(log), "log": str(log)}
        state.note(folder, planned, state.FAILED, **failed)
        return Result(state.FAILED, spent, **failed)
    return Result(state.FINISHED, spent, log=str(log))


def is_busy(folder: pathlib.Path, planned: Planned) -> bool:
    """Whether another program works on a run."""
    places = (folder / "claims" / planned.folder, folder / planned.folder)
    try:
        for place in filter(pathlib.Path.exists, places):
            with WorkdirLock(place, "study"):
                pass
    except ValueError:
        return True
    return False


def _wait(child: subprocess.Popen) -> int:
    """Waits for a process; a signal to this one is passed on, and waited for, too."""
    while True:
        try:
            return child.wait()
        except KeyboardInterrupt:
            logging.warning("interrupted; waits until process %d has saved", child.pid)
            _end(child, signal.SIGINT)
            raise
        except Terminated:
            _end(child, signal.SIGTERM)
            raise


def _end(child: subprocess.Popen, number: int) -> None:
    """Sends a signal and waits; a further Ctrl-C is passed on as well."""
    child.send_signal(number)
    while child.poll() is None:
        try:
            child.wait()
        except KeyboardInterrupt:
            child.send_signal(signal.SIGINT)
        except Terminated:
            child.terminate()


def describe(planned: Planned, result: Result) -> str:
    """Says what became of a run, for people."""
    if result.status == BUSY:
        return f"{planned.name}: another program works on it"
    if result.status == state.FINISHED:
        how = f"in {result.seconds:.0f} s" if result.log else "by another program"
        return f"{planned.name}: finished {how}"
    code = result.exit_code or 0
    how = (
        f"exit code {code}"
        if code > 0
        else "no results"
        if code == 0
        else f"death by {signal.Signals(-code).name}"
    )
    said = {
        exit_codes.REFUSED: "refused",
        exit_codes.RESTART: "to be started again",
        exit_codes.STORAGE: "the disk",
        interrupts.CODE: "interrupted",
    }.get(code)
    lines = "\n".join(f"    {line}" for line in result.lines)
    return (
        f"{planned.name}: FAILED after {result.seconds:.0f} s with {how}"
        f"{f' ({said})' if said else ''}; {result.log} ends with\n{lines}"
    )
