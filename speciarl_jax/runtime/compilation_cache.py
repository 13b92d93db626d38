"""Keeps compiled programs on disk, for the next process that runs them."""

import pathlib

import jax


def enable(folder: str) -> None:
    """Keeps compiled programs in `folder`; does nothing if that is "".

    To be called before anything is compiled. A program is found again by its content, the versions
    and flags of jax and the compiler, and the devices.

    Raises:
      ValueError: the folder cannot be made.
    """
    if not folder:
        return
    try:
        pathlib.Path(folder).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(
            f"config.compilation_cache {folder!r} cannot be made ({error.strerror}); choose "
            "another folder, or an empty text for none"
        ) from None
    jax.config.update("jax_compilation_cache_dir", folder)
    # By default JAX keeps no program that compiles in under a second; a start has many of them.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
