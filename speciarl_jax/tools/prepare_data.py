"""Downloads one of the paper's data sets and writes it as ArrayRecord, once.

    python -m speciarl_jax.tools.prepare_data --dataset=caltech_birds2011 --data_dir=DATA

With --archives=FOLDER nothing is downloaded: the official archives are taken from that folder,
under their own names. The builders are those of TFDS. All but food101 and fgvc_aircraft need
TensorFlow for this step; training never does.
"""

import pathlib
import shutil
import tarfile
import zlib
from collections.abc import Sequence
from typing import Any
from urllib.parse import urlsplit

import jax
from absl import app, flags, logging
from etils import epath

from speciarl_jax.data import tfds_images
from speciarl_jax.runtime import exit_codes
from speciarl_jax.runtime.messages import first_line

# Libraries that some builders of TFDS need.
TOOLS = "tensorflow-cpu opencv-python-headless scipy"


def unpack(archive: str, folder: pathlib.Path) -> epath.Path:
    """Unpacks a tar archive into `folder`, once; returns its folder, or any other file as it is.

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
            f"{path} is no whole archive ({first_line(error)}); delete it and download it again"
        ) from error
    unfinished.rename(target)
    return epath.Path(target)


def adapt(manager: Any, archives: str | None) -> Any:
    """Makes a TFDS download manager unpack without TensorFlow, and returns it.

    Args:
      archives: folder that holds what would be downloaded; None to download.
    """
    folder = pathlib.Path(manager._extract_dir)
    folder.mkdir(parents=True, exist_ok=True)

    def local(url: Any) -> str:
        path = pathlib.Path(archives, urlsplit(str(url)).path.rsplit("/", 1)[-1])
        if not path.is_file():
            raise ValueError(
                f"{path} is missing; download {url} and put it into --archives under that name"
            )
        return str(path)

    if archives:
        manager.download = lambda urls: jax.tree.map(local, urls)
    manager.extract = lambda paths: jax.tree.map(lambda path: unpack(path, folder), paths)
    manager.download_and_extract = lambda urls: manager.extract(manager.download(urls))
    return manager


def prepare(dataset: str, data_dir: str | None, archives: str | None = None) -> pathlib.Path:
    """Writes a data set unless it exists already; returns the folder of its records.

    Args:
      dataset: one of `tfds_images.PUBLISHED`.
      data_dir: receives the data; None for TFDS' own folder.
      archives: folder of the official archives; None to download them.

    Raises:
      ValueError: the data set is unknown, an archive is missing or not whole, or a library that
        the builder needs is not installed.
    """
    builder = tfds_images.make_builder(dataset, data_dir)
    make = builder._make_download_manager
    builder._make_download_manager = lambda *args, **options: adapt(
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
        # Opening a split also writes the index of names and labels that training reads.
        source = tfds_images.Source(
            dataset=given.dataset, split=split, seed=0, data_dir=given.data_dir or ""
        )
        logging.info("%s: %d of %d images", split, len(source), count)
    print(f"{given.dataset}: {folder}")


if __name__ == "__main__":
    flags.DEFINE_string("dataset", None, f"One of {sorted(tfds_images.PUBLISHED)}.")
    flags.DEFINE_string("data_dir", None, "Receives the data; default: TFDS' own folder.")
    flags.DEFINE_string("archives", None, "Folder of the archives; default: download them.")
    exit_codes.run_tool("prepare_data", main)
