"""A folder that is there when all of it is written, or not at all."""

import contextlib
import errno
import pathlib
import tempfile
from collections.abc import Iterator

from speciarl_jax.runtime import workdir_lock


@contextlib.contextmanager
def new_folder(out: pathlib.Path, program: str = "convert") -> Iterator[pathlib.Path]:
    """Yields a folder to write to; renames it to `out` at the end, or deletes it after an error.

    Meanwhile it holds the lock of `out`, so that no run begins there.

    Args:
      out: of the option `--out`.
      program: that writes, for messages.

    Raises:
      ValueError: `out` exists and is not an empty folder, or another program writes there.
    """
    full = f"--out={out} exists already and is not empty; choose another folder"
    if out.exists() and not out.is_dir():
        raise ValueError(full)
    out, there = out.resolve(), out.exists()
    out.mkdir(parents=True, exist_ok=True)
    try:
        with workdir_lock.WorkdirLock(out, program, option="--out") as lock:
            if any(path.name != workdir_lock.FILE for path in out.iterdir()):
                raise ValueError(full)
            # Beside `out`: a folder can be renamed only within one disk.
            with tempfile.TemporaryDirectory(prefix=f".{out.name}_", dir=out.parent) as holder:
                folder = pathlib.Path(holder) / "new"
                folder.mkdir()
                yield folder
                lock.release()
                try:
                    folder.replace(out)
                except OSError as error:
                    if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                        raise
                    raise ValueError(full) from error
    except BaseException:
        if not there:
            with contextlib.suppress(OSError):
                out.rmdir()
        raise
