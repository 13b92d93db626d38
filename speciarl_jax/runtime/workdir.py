"""Opens the folder that a program writes to."""

import contextlib
from collections.abc import Iterator

import jax
from etils import epath

from speciarl_jax.runtime import exit_codes, multihost
from speciarl_jax.runtime.workdir_lock import WorkdirLock


def open_workdir(path: str) -> epath.Path:
    """Makes the folder and proves that it can be written to. ValueError: it cannot."""
    workdir = epath.Path(path)
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        probe = workdir / f".probe_{jax.process_index()}"
        probe.write_text("." * 4096)  # an empty file fits on a full disk
        probe.unlink()
    except ImportError as error:
        raise ValueError(
            f"--workdir={path} needs a library that is not installed ({error}); for gs:// paths: "
            "pip install gcsfs google-cloud-storage"
        ) from error
    except OSError as error:
        raise ValueError(
            f"--workdir={path} cannot be written to ({error.strerror or error}); choose a folder "
            "that can, or free space"
        ) from None
    return workdir


@contextlib.contextmanager
def writing(path: str, program: str) -> Iterator[epath.Path]:
    """Opens a workdir that no other program may write to meanwhile (`WorkdirLock`).

    All processes of a run must call it; the first takes the lock.

    Args:
      program: its name, for messages.

    Raises:
      ValueError: the folder cannot be written to, or another program holds its lock; in all
        processes.
    """
    workdir, error = open_workdir(path), None
    with contextlib.ExitStack() as stack:
        if jax.process_index() == 0:
            try:
                stack.enter_context(WorkdirLock(workdir, program))
            except (ValueError, OSError) as found:
                error = found
        said = multihost.allgather(None if error is None else str(error))[0]
        if isinstance(error, OSError) and jax.process_count() == 1:
            raise error
        if said is not None:
            raise exit_codes.RefusedByAll(said) from error
        yield workdir
