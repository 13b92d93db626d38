"""Downloads one of the paper's data sets and writes it as ArrayRecord, once.

    python -m speciarl_jax.tools.prepare_data --dataset=caltech_birds2011 --data_dir=DATA

With --archives=FOLDER nothing is downloaded: the official archives are taken from there, under
their own names. The builders are those of TFDS; some need TensorFlow for this step, and nothing
needs it afterwards. food101 and fgvc_aircraft never do.
"""

import pathlib
import shutil
import tarfile
import zlib
from collections.abc import Callable, Sequence
from typing import Any
from urllib.parse import urlsplit

from absl import app, flags, logging
from etils import epath

from speciarl_jax.data import tfds_images
from speciarl_jax.runtime import exit_codes

# What the builders of TFDS ask for, some of them.
TOOLS = "tensorflow-cpu opencv-python-headless scipy"


def mapped(function: Callable[[Any], Any], tree: Any) -> Any:
    """`function` of each leaf of nested dicts and lists."""
    if isinstance(tree, dict):
        return {key: mapped(function, value) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return [mapped(function, value) for value in tree]
    return function(tree)


def unpack(archive: str, folder: pathlib.Path) -> epath.Path:
    """The folder of an unpacked tar archive; a file of another kind as it is.

    Raises:
      ValueError: the archive is damaged.
    """
    path = pathlib.Path(archive)
    if not path.name.endswith((".tgz", ".tar.gz", ".tar")):
        return epath.Path(path)
    target = folder / path.name
    if target.is_dir():
        return epath.Path(target)
    unfinished = folder / f"{path.name}.unfinished"
    shutil.rmtree(unfinished, ignore_errors=True)
    try:
        with tarfile.open(path) as tar:
            tar.extractall(unfinished, filter="data")
    except (tarfile.TarError, EOFError, zlib.error, OSError) as error:
        raise ValueError(
            f"{path} is no whole archive ({error}); delete it and download it again"
        ) from error
    unfinished.rename(target)
    return epath.Path(target)


def adapted(manager: Any, archives: str | None) -> Any:
    """A TFDS download manager that unpacks without TensorFlow.

    Args:
      manager: to be changed.
      archives: folder that holds what would be downloaded; None to download.
    """
    folder = pathlib.Path(manager._extract_dir)
    folder.mkdir(parents=True, exist_ok=True)

    def local(url: str) -> str:
        path = pathlib.Path(archives, urlsplit(str(url)).path.rsplit("/", 1)[-1])
        if not path.is_file():
            raise ValueError(
                f"{path} is missing; download {url} and put it into --archives under that name"
            )
        return str(path)

    if archives:
        manager.download = lambda urls: mapped(local, urls)
    manager.extract = lambda paths: mapped(lambda path: unpack(path, folder), paths)
    manager.download_and_extract = lambda urls: manager.extract(manager.download(urls))
    return manager


def prepare(dataset: str, data_dir: str | None, archives: str | None = None) -> pathlib.Path:
    """Writes a data set unless it is there already.

    Args:
      dataset: one of `tfds_images.PUBLISHED`.
      data_dir: receives it; None for TFDS' own folder.
      archives: folder of the official archives; None to download them.

    Returns:
      The folder of the records.

    Raises:
      ValueError: an unknown data set, an archive that is missing or not whole, or a library that
        this data set's builder needs is not installed.
    """
    builder = tfds_images.make_builder(dataset, data_dir)
    make = builder._make_download_manager
    builder._make_download_manager = lambda *args, **options: adapted(
        make(*args, **options), archives
    )
    try:
        builder.download_and_prepare()
    except ImportError as error:
        raise ValueError(
            f"preparing {dataset} needs a library that is not installed ({error}); install it for "
            f"this step: pip install {TOOLS}. Training needs none of them"
        ) from error
    return pathlib.Path(builder.data_dir)


def main(argv: Sequence[str]) -> None:
    given = flags.FLAGS
    if len(argv) > 1 or not given.dataset:
        raise app.UsageError(f"give --dataset, one of {sorted(tfds_images.PUBLISHED)}")
    folder = prepare(given.dataset, given.data_dir, given.archives)
    for split, count in tfds_images.PUBLISHED[given.dataset].sizes.items():
        # Also makes the index of names and labels that training reads.
        source = tfds_images.Source(
            dataset=given.dataset, split=split, seed=0, data_dir=given.data_dir or ""
        )
        logging.info("%s: %d of %d images", split, len(source), count)
    print(f"{given.dataset}: {folder}")


if __name__ == "__main__":
    flags.DEFINE_string("dataset", None, f"One of {sorted(tfds_images.PUBLISHED)}.")
    flags.DEFINE_string("data_dir", None, "Receives the data; TFDS' own folder by default.")
    flags.DEFINE_string("archives", None, "Folder of archives that were downloaded before.")
    exit_codes.run_tool("prepare", main)
