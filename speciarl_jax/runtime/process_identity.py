"""Tells whether a process that wrote its name down still lives; its number alone does not."""

import os
import pathlib
import socket
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

_PROC = pathlib.Path("/proc")
# What must be equal before a number of a process can be looked up here. Two containers may share
# the name of their host, and two hosts may have one name.
_PLACE = ("host", "boot", "pid_namespace")
_GONE = "ended"
_ENDED = "ZX"  # states of a process that has ended, and whose parent has not looked yet


def this_process() -> dict[str, Any]:
    """Returns where and since when this process runs; JSON-able."""
    return {
        "host": socket.gethostname(),
        "boot": _read(_PROC / "sys/kernel/random/boot_id"),
        "pid_namespace": _link(_PROC / "self/ns/pid"),
        "pid": os.getpid(),
        "started": started(os.getpid()),
    }


def same_place(written: Mapping[str, Any]) -> bool:
    """Whether the numbers of processes here are those that `written` means.

    Args:
      written: what `this_process` returned to another process.
    """
    mine = this_process()
    return "host" in written and all(written.get(key) in (None, mine[key]) for key in _PLACE)


def is_alive(written: Mapping[str, Any]) -> bool:
    """Whether a process of this place still lives; one that cannot be told from another does.

    Args:
      written: what `this_process` returned to it.
    """
    pid = written.get("pid")
    if not isinstance(pid, int) or pid <= 0:
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        pass  # of another user
    now = started(pid)
    before = written.get("started")
    return now != _GONE and (not now or not before or now == before)


def started(pid: int) -> str:
    """Returns when a process was started: text that differs between processes of one number.

    "" where the system does not tell, and "ended" for one that has ended.
    """
    if sys.platform != "linux":
        command = ["ps", "-o", "lstart=", "-p", str(pid)]
        try:
            return subprocess.run(command, capture_output=True, text=True).stdout.strip()
        except OSError:
            return ""
    # The name of the program, in brackets, may hold anything.
    fields = _read(_PROC / str(pid) / "stat").rpartition(")")[2].split()
    if len(fields) < 20:
        return ""
    return _GONE if fields[0] in _ENDED else f"tick {fields[19]}"


def _read(path: pathlib.Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""


def _link(path: pathlib.Path) -> str:
    try:
        return os.readlink(path)
    except OSError:
        return ""
