"""Tells what cannot be read now from what is damaged, when reading it has failed."""

import errno
import re
from typing import Any

from speciarl_jax.runtime import exit_codes
from speciarl_jax.runtime.messages import chain, first_line

# Errors of the system where something is missing or of another kind: damage.
_DAMAGE = {errno.ENOENT, errno.ENOTDIR, errno.EISDIR}
# TensorStore raises nothing but ValueError: only the text has its status and the system's error.
_SYSTEM = re.compile(r"os_error_code='(\d+)'")
_FORBIDDEN = ("PERMISSION_DENIED", "UNAUTHENTICATED")
_AWAY = ("UNAVAILABLE", "DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED", "ABORTED", "CANCELLED")
# Libraries whose errors are of the way to a bucket.
_BUCKET = {"aiohttp", "gcsfs", "google", "requests", "urllib3"}


def check(path: Any, error: BaseException) -> None:
    """Returns if an error can only come from damage; otherwise raises what hides behind it.

    Libraries wrap the errors of a disk or a bucket, so all causes of `error` are looked at.

    Raises:
      OSError: the disk's own error.
      MemoryError: the machine has too little memory.
      exit_codes.StorageError: a bucket refuses to let this program read.
      exit_codes.RestartNeeded: a bucket does not answer.
    """
    what = f"{type(error).__name__}: {first_line(error)}"
    said = f"{path} cannot be read now, and may be whole ({what})"
    for cause in chain(error):
        text, library = str(cause), type(cause).__module__.split(".")[0]
        system = _SYSTEM.search(text)
        if isinstance(cause, MemoryError):
            raise cause
        if isinstance(cause, OSError) and cause.errno and cause.errno not in _DAMAGE:
            raise cause
        if system and int(system[1]) not in _DAMAGE:
            raise OSError(int(system[1]), said) from error
        if any(status in text for status in _FORBIDDEN) or (
            library in _BUCKET and getattr(cause, "code", None) in (401, 403)
        ):
            raise exit_codes.StorageError(
                f"{said}; give this program the right to read it"
            ) from error
        unanswered = isinstance(cause, TimeoutError | ConnectionError)
        if unanswered or library in _BUCKET or any(status in text for status in _AWAY):
            raise exit_codes.RestartNeeded(said) from error
