"""Opens the folder that a program writes to."""

import jax
from etils import epath


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
