"""Ctrl-C (SIGINT): the first ends a program in an orderly way, the second at once."""

import contextlib
import os
import signal
import sys
import threading
from typing import Any, NoReturn

from speciarl_jax.runtime.messages import chain

# What a shell reports of a program that SIGINT ended.
CODE = 128 + signal.SIGINT
_FIRST = "\nCtrl-C: ends as soon as what it was doing is saved; again ends it at once\n"
_SECOND = "\nCtrl-C again: ends at once; the same command goes on from what is saved\n"


class Watch:
    """Ends the process at the second Ctrl-C, whatever its main thread waits for.

    Python handles signals in the main thread, which a compiler or a device may hold up for minutes.
    So a thread of its own counts them. A context manager, for the main thread; it does nothing in
    another one, and where SIGINT is ignored, as in the background jobs of a script.
    """

    def __init__(self) -> None:
        """Handles nothing yet."""
        self._before: tuple[Any, int] | None = None
        self._write = -1

    def __enter__(self) -> "Watch":
        if threading.current_thread() is threading.main_thread() and is_heeded():
            read, self._write = os.pipe()
            os.set_blocking(self._write, False)
            # Outside training the first one is a KeyboardInterrupt.
            self._before = (
                signal.signal(signal.SIGINT, signal.default_int_handler),
                signal.set_wakeup_fd(self._write, warn_on_full_buffer=False),
            )
            threading.Thread(target=_count, args=(read,), name="ctrl_c", daemon=True).start()
        return self

    def __exit__(self, *error: Any) -> None:
        if self._before is not None:
            handler, descriptor = self._before
            signal.set_wakeup_fd(descriptor)
            signal.signal(signal.SIGINT, handler)
            os.close(self._write)  # ends the thread


def is_heeded() -> bool:
    """Whether a SIGINT does something here, and is handled by Python or the system."""
    return signal.getsignal(signal.SIGINT) not in (signal.SIG_IGN, None)


def is_behind(error: BaseException | None) -> bool:
    """Whether an error is a Ctrl-C, or came up while a program was ending because of one."""
    return any(isinstance(one, KeyboardInterrupt) for one in chain(error))


def end() -> NoReturn:
    """Ends the process as SIGINT does, so that a shell ends its loop, too."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    os.kill(os.getpid(), signal.SIGINT)
    os._exit(CODE)


def _count(read: int) -> None:
    """Takes the numbers of the signals that come; ends when nobody writes them any more."""
    came = 0
    while number := os.read(read, 1):
        if number[0] == signal.SIGINT:
            came += 1
            with contextlib.suppress(OSError):
                os.write(2, (_FIRST if came == 1 else _SECOND).encode())
            if came > 1:
                os._exit(CODE)
    os.close(read)
