"""Tells what cannot be reached now from what is damaged, when reading it has failed."""

import errno
import re
from typing import Any

from speciarl_jax.runtime import exit_codes

# What the system says where something is missing or of another kind: damage.
_DAMAGE = {errno.ENOENT, errno.ENOTDIR, errno.EISDIR}
# As TensorStore writes the system's errors, and the codes that it gives to a bucket's.
_SYSTEM = re.compile(r"os_error_code='(\d+)'")
_FORBIDDEN = re.compile(r"\b(PERMISSION_DENIED|UNAUTHENTICATED)\b")
_AWAY = re.compile(r"\b(UNAVAILABLE|DEADLINE_EXCEEDED|RESOURCE_EXHAUSTED|ABORTED|CANCELLED)\b")
# Libraries whose errors are of the way to a bucket.
_BUCKET = {"aiohttp", "gcsfs", "google", "requests", "urllib3"}


def check(path: Any, error: BaseException) -> None:
    """Returns if an error can only come from damage.

    Libraries put the errors of a disk or a bucket into their own, so that the causes of `error` and
    their texts are looked through.

    Args:
      path: what could not be read.
      error: what the library said.

    Raises:
      OSError: the disk's own error.
      MemoryError: the machine's.
      exit_codes.StorageError: a bucket refuses to let this program read.
      exit_codes.RestartNeeded: a bucket does not answer.
    """
    said = f"{path} cannot be read now, and may be whole ({type(error).__name__}: {error})"
    cause: BaseException | None = error
    while cause is not None:
        text = str(cause)
        if isinstance(cause, MemoryError):
            raise cause
        if isinstance(cause, OSError) and cause.errno and cause.errno not in _DAMAGE:
            raise cause
        system = _SYSTEM.search(text)
        if system and int(system.group(1)) not in _DAMAGE:
            raise OSError(int(system.group(1)), said) from error
        if _FORBIDDEN.search(text):
            raise exit_codes.StorageError(
                f"{said}; give this program the right to read it"
            ) from error
        unanswered = isinstance(cause, TimeoutError | ConnectionError) or _AWAY.search(text)
        if unanswered or type(cause).__module__.split(".")[0] in _BUCKET:
            raise exit_codes.RestartNeeded(said) from error
        cause = cause.__cause__ or cause.__context__
