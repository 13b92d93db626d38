"""Exit codes, by which a launcher knows whether to restart a program or to call a person.

| code | what happened | what `launch/restart.sh` does |
|---|---|---|
| 0 | the run is finished | stops |
| 75 | preempted, all is saved; another process, or the judge, is away or late | starts it again |
| 1, or a signal | something unforeseen | starts it again, so many times |
| 74 | the disk is full, read-only or out of reach | stops |
| 78 | refused: a value does not fit, too little memory, the gradient not finite too often | stops |
| 130 | Ctrl-C (death by SIGINT); while training all is saved | stops |

The numbers are those of sysexits.h: EX_TEMPFAIL, EX_IOERR, EX_CONFIG.
"""

import errno
import os
import signal
import sys
import traceback
from collections.abc import Callable, Sequence

import jax
from absl import app, logging

from speciarl_jax.runtime import interrupts
from speciarl_jax.runtime.messages import first_line

RESTART = 75
STORAGE = 74
REFUSED = 78

MEMORY = (
    "a device has too little memory for this configuration; where it was sampling, set or lower "
    "config.rollout.cache_bytes or config.rollout.max_images_per_chunk (0: no limit); where it was "
    "learning, raise config.train.micro_batches or set config.train.remat to 'full'; or take more "
    "devices"
)

# Errors of a disk that will be the same after a restart.
_STORAGE_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG, errno.EACCES}


class Preempted(Exception):
    """The machine is about to be taken away, and all that is needed to go on is saved."""


class Interrupted(Preempted):
    """Ctrl-C: all that is needed to go on is saved; launchers do not start it again."""


class RefusedByAll(ValueError):
    """All processes of the run refuse alike, may end together, and say no more than the message."""


class RestartNeeded(Exception):
    """All processes of the run have to start again; the message says why."""


class StorageError(OSError):
    """Something could not be written; the message says what, and what is safe."""


def code_of(error: BaseException, several: bool) -> int:
    """Returns the exit code for an error that ended the program.

    Args:
      several: whether the run has several processes: then an error of JAX's runtime mostly means
        that one of the others went away, or is late.
    """
    if isinstance(error, Interrupted) or interrupts.is_behind(error):
        return interrupts.CODE
    if isinstance(error, Preempted | RestartNeeded):
        return RESTART
    if isinstance(error, StorageError) or getattr(error, "errno", None) in _STORAGE_ERRORS:
        return STORAGE
    if isinstance(error, ValueError | TypeError | FloatingPointError) or out_of_memory(error):
        return REFUSED
    if isinstance(error, jax.errors.JaxRuntimeError) and several:
        return RESTART
    return 1


def out_of_memory(error: BaseException) -> bool:
    """Says whether a program needs more memory than a device has, as it would after a restart."""
    return isinstance(error, jax.errors.JaxRuntimeError) and "RESOURCE_EXHAUSTED" in str(error)


def guarded(main: Callable[[Sequence[str]], None]) -> Callable[[Sequence[str]], None]:
    """Wraps `main` for `app.run`, so that the program ends with the exit codes of this module.

    Before and after training a SIGTERM ends the program at once with `RESTART`, and a Ctrl-C ends
    it, too; while training, `preemption.Notice` takes both. A second Ctrl-C ends it at any moment.
    """

    def call(argv: Sequence[str]) -> None:
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(RESTART))
        # A request for a profile, which nobody takes outside training, must not end the program.
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)
        with interrupts.Watch():
            try:
                main(argv)
            except (app.UsageError, SystemExit):
                raise
            except (Exception, KeyboardInterrupt) as error:
                _say(error)
                together = isinstance(error, Preempted | RefusedByAll)
                # Not jax.process_count(): it asks for the devices, and where connecting has failed
                # it would wait for the others.
                leave(code_of(error, jax.distributed.is_initialized()), together=together)

    return call


def _say(error: BaseException) -> None:
    """Says what ended a program: in a line where that says all, otherwise with a traceback."""
    if isinstance(error, Preempted):
        logging.warning("%s", error)
    elif isinstance(error, RefusedByAll):
        logging.error("%s", error)
    elif interrupts.is_behind(error):
        logging.warning(
            "interrupted; what is written stays, and the same command goes on from there"
        )
        if not isinstance(error, KeyboardInterrupt):
            # Of a library that was closed meanwhile.
            logging.warning("at the end: %s: %s", type(error).__name__, first_line(error))
    else:
        traceback.print_exc()
    if out_of_memory(error):
        logging.error("%s", MEMORY)


def run_tool(
    name: str,
    main: Callable[[Sequence[str]], int | None],
    refused: tuple[type[Exception], ...] = (ValueError,),
) -> None:
    """Runs a command for people: a refusal is one line and `REFUSED`, --verbosity=1 says more.

    Args:
      name: of the command; begins the line.
      main: as for `app.run`; its result is the exit code.
      refused: errors whose message says what to mend.
    """
    try:
        app.run(main)
    except refused as error:
        logging.debug("refused", exc_info=True)
        print(f"{name}: {error}", file=sys.stderr)
        sys.exit(REFUSED)
    except KeyboardInterrupt:
        print(f"{name}: interrupted", file=sys.stderr)
        interrupts.end()


def leave(code: int, *, together: bool) -> None:
    """Ends this process with an exit code.

    With `together`, all processes of the run end now and wait for each other. Otherwise this one
    does not wait: the others may be gone already, or hang until they see that this one is.
    """
    if jax.distributed.is_initialized():
        if not together:
            logging.error("leaves with exit code %d, without the others", code)
            logging.flush()
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
        jax.distributed.shutdown()
    if code == interrupts.CODE:
        interrupts.end()
    sys.exit(code)
