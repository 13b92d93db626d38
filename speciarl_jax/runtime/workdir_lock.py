"""The lock of a workdir: a file that names the one program that writes there.

A program that was killed leaves the file behind, and the next one takes it over. On the same host
the process decides: it is gone, or another has its number now. Of another host nothing is known
but that its program writes the file anew every `RENEW_EVERY` seconds. Where it does not for
`LOST_AFTER` seconds, it counts as gone. A program that finds that another took its lock over, for
instance after its machine was suspended, ends at once.

In a folder the file is made by an operation that only one program can succeed in. A bucket has none
that all its libraries offer, so a program writes its name there, waits, and looks whose name stays.
"""

import contextlib
import fcntl
import json
import os
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from absl import logging
from etils import epath

from speciarl_jax.runtime import exit_codes, jsonl, process_identity

FILE = "writer.lock"
RENEW_EVERY, LOST_AFTER = 10.0, 60.0
# Seconds between two looks at the lock of another host.
_LOOK_EVERY = 1.0
# Seconds that two programs need at most between looking at a bucket and writing to it.
_SETTLE = 2.0
# So many times `LOST_AFTER` no clocks differ.
_CLOCKS = 10
_TRIES = 20

# Tokens of the locks that this process holds.
_held: set[str] = set()


class _Found(NamedTuple):
    """A lock that is there."""

    content: bytes
    record: Mapping[str, Any]  # empty if the file is damaged

    def __str__(self) -> str:
        if "pid" not in self.record:
            return "a program that cannot be read from it"
        return "`{program}` (process {pid} on {host}, since {taken})".format(
            **{"program": "a program", "host": "an unknown host", "taken": "?", **self.record}
        )


class WorkdirLock:
    """Holds the lock of a folder while it is open (a context manager)."""

    def __init__(
        self,
        folder: epath.PathLike,
        program: str,
        *,
        option: str = "--workdir",
        on_lost: Callable[[], None] | None = None,
    ):
        """Takes nothing yet.

        Args:
          folder: an existing folder, or a URL (gs://...).
          program: its name, for messages.
          option: that names the folder on the command line.
          on_lost: is called when another program has taken the lock over; by default the process
            ends with `exit_codes.REFUSED`.
        """
        self.path = epath.Path(folder) / FILE
        self._program, self._option, self._on_lost = program, option, on_lost or _end
        self._token, self._taken = uuid.uuid4().hex, time.strftime("%Y-%m-%d %H:%M:%S %z")
        self._stop, self._thread = threading.Event(), None

    def __enter__(self) -> "WorkdirLock":
        """Takes the lock.

        Raises:
          ValueError: another program holds it; says which, and how to go on.
          OSError: the file cannot be written.
        """
        _held.add(self._token)
        try:
            self._take()
        except BaseException:
            _held.discard(self._token)
            raise
        self._thread = threading.Thread(target=self._renew, name="workdir_lock", daemon=True)
        self._thread.start()
        return self

    def _take(self) -> None:
        for _ in range(_TRIES):
            if (found := _read(self.path)) is not None:
                if not (why := self._gone(found)):
                    raise ValueError(self._refusal(found))
                if why != _RELEASED:
                    logging.warning("%s: takes over from %s: %s", self.path, found, why)
                    _clear(self.path, found)
            if self._create():
                return
        raise ValueError(f"{self.path}: other programs take it again and again; start later")

    def __exit__(self, *error: Any) -> None:
        self.release()

    def release(self) -> None:
        """Gives the lock back; the file is deleted if it is still this program's."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(timeout=_SETTLE)
        _held.discard(self._token)
        # A lock that stays is taken over: its process is gone.
        with contextlib.suppress(Exception):
            if self._mine(_read(self.path)):
                self.path.unlink()

    def _create(self) -> bool:
        """Returns whether the file is this program's now."""
        if "://" in str(self.path):
            self.path.write_text(self._text())
            time.sleep(_SETTLE)
        else:
            draft = self.path.with_name(f".{FILE}_{self._token}")
            try:
                draft.write_text(self._text())
                _make(draft, self.path)
            finally:
                draft.unlink(missing_ok=True)
        return self._mine(_read(self.path))

    def _text(self) -> str:
        record = process_identity.this_process() | {
            "program": self._program,
            "taken": self._taken,
            "renewed": time.time(),
            "token": self._token,
        }
        return json.dumps(record, indent=1) + "\n"

    def _mine(self, found: _Found | None) -> bool:
        return found is not None and found.record.get("token") == self._token

    def _gone(self, found: _Found) -> str:
        """Returns why the program that holds a lock counts as gone; "" if it does not."""
        record = found.record
        if record and process_identity.same_place(record):
            if not process_identity.is_alive(record):
                return "that process has ended"
            mine = record["pid"] == os.getpid() and record.get("token") not in _held
            return "it is left of an earlier program of this process" if mine else ""
        renewed = record.get("renewed")
        if isinstance(renewed, float) and time.time() - renewed > _CLOCKS * LOST_AFTER:
            return f"it has not said for {(time.time() - renewed) / 60:.0f} minutes that it lives"
        logging.warning(
            "%s is the lock of %s; waits up to %.0f s for a sign that it lives",
            *(self.path, found, LOST_AFTER),
        )
        until = time.monotonic() + LOST_AFTER
        while time.monotonic() < until:
            time.sleep(_LOOK_EVERY)
            now = _read(self.path)
            if now is None:
                return _RELEASED
            if now.content != found.content:
                return ""
        return f"it has not said for {LOST_AFTER:.0f} s that it lives"

    def _refusal(self, found: _Found) -> str:
        return (
            f"{self.path.parent} is being written to by {found}, and two programs would mix what "
            f"they write. Give another {self._option}, or wait until that one has ended; if it is "
            f"surely gone, delete {self.path} and start again. Meanwhile report, compare, predict, "
            "convert --workdir=..., and evaluate with --config and another --workdir may read "
            "the folder"
        )

    def _renew(self) -> None:
        """Says now and then that this program lives, and ends it if the lock is another's."""
        while not self._stop.wait(RENEW_EVERY):
            try:
                found = _read(self.path)
                if found is None:
                    self._create()
                elif self._mine(found):
                    jsonl.replace(self.path, self._text())
                elif found.record:
                    logging.error(
                        "%s was taken over by %s; ends at once, or both would write there",
                        *(self.path, found),
                    )
                    self._on_lost()
                    return
            except Exception as error:  # A disk that is away for a while.
                logging.debug("%s cannot be renewed: %s", self.path, error)


_RELEASED = "it was given back"


def _read(path: epath.Path) -> _Found | None:
    """Reads a lock; None where there is none."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:  # Another may be there by now.
        return None
    except Exception:  # Each library of buckets has its own.
        if path.exists():
            raise
        return None
    try:
        record = json.loads(content)
    except ValueError:
        record = {}
    return _Found(content, record if isinstance(record, dict) else {})


def _make(draft: epath.Path, path: epath.Path) -> None:
    """Gives a file its name, unless there is one of this name."""
    try:
        os.link(draft, path)
    except FileExistsError:
        pass
    except OSError:  # a disk without hard links
        with contextlib.suppress(FileExistsError), open(path, "x") as file:
            file.write(draft.read_text())


def _clear(path: epath.Path, found: _Found) -> None:
    """Deletes a lock whose program is gone; one that another program took meanwhile stays."""
    if "://" in str(path):
        return  # It is written over.
    aside = path.with_name(f".{FILE}_{uuid.uuid4().hex}")
    with _alone(path.parent):
        now = _read(path)
        if now is None or now.content != found.content:
            return
        # A disk that lets several in at once: what was not this lock is put back.
        try:
            path.rename(aside)
        except FileNotFoundError:
            return
        if aside.read_bytes() != found.content:
            _make(aside, path)
        aside.unlink(missing_ok=True)


@contextlib.contextmanager
def _alone(folder: epath.Path) -> Iterator[None]:
    """Lets one program in at a time; the system lets the next one in when one is killed."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # Some disks of a network lock no folders.
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _end() -> None:
    """Ends the process from another thread than the main one, without writing any more."""
    logging.flush()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(exit_codes.REFUSED)
