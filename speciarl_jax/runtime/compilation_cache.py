"""Keeps compiled programs on disk, for the next process that runs them."""

import hashlib
import os
import pathlib
import platform

import jax
from absl import logging

USER = "user"  # the name of the folder below
_USER_BYTES = 4 * 2**30


def user_folder() -> pathlib.Path:
    """Returns the folder of this user's programs for processors like this machine's.

    Programs of a CPU use instructions that another may lack, also where two machines share a home.
    """
    cache = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
    known = [platform.machine(), platform.processor()]
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text("utf-8", "replace").splitlines()
        known += sorted({line for line in lines if line.startswith(("model name", "flags"))})
    except OSError:
        pass  # no Linux
    machine = hashlib.sha256("\n".join(known).encode()).hexdigest()[:12]
    return pathlib.Path(cache) / "speciarl_jax" / "programs" / machine


def enable(folder: str) -> None:
    """Keeps compiled programs in a folder; does nothing if that is "".

    To be called before anything is compiled. A program is found again by its content, the versions
    and flags of jax and the compiler, and the devices.

    Args:
      folder: a path; or `USER` for `user_folder()`, where the programs that were not used for
        longest are deleted beyond 4 GiB. That one gives way to a folder that JAX was given
        (JAX_COMPILATION_CACHE_DIR), and without it programs are compiled each time.

    Raises:
      ValueError: the folder cannot be made.
    """
    if not folder or (folder == USER and jax.config.jax_compilation_cache_dir):
        return
    path = pathlib.Path(folder)
    try:
        if folder == USER:
            path = user_folder()
        path.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError) as error:  # RuntimeError: nobody knows where home is
        said = getattr(error, "strerror", None) or error
        if folder == USER:
            logging.warning("compiled programs are not kept: %s cannot be made (%s)", path, said)
            return
        raise ValueError(
            f"config.compilation_cache {folder!r} cannot be made ({said}); choose another folder, "
            "or an empty text for none"
        ) from None
    if folder == USER:
        jax.config.update("jax_compilation_cache_max_size", _USER_BYTES)
    jax.config.update("jax_compilation_cache_dir", str(path))
    # By default JAX keeps no program that compiles in under a second; a start has many of them.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
