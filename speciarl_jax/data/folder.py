"""Data set of a user's own images: a folder for each label.

birds/albatross/one.jpg
birds/albatross/two.png
birds/001.Black_footed_Albatross/...        the label is "Black footed Albatross"
animals/bird/duck/mallard/...               nested folders make a label tree
"""

import os
import pathlib
from typing import Any

from absl import logging

from speciarl_jax.data import file_dataset, images, label_tree

SUFFIXES = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff")


def scan(path: str | os.PathLike) -> tuple[list[str], int]:
    """Lists the images below a folder.

    Follows links, but enters each folder once. Skips names that begin with a dot.

    Returns:
      Sorted paths relative to the folder with "/" as separator, and the number of other files.

    Raises:
      ValueError: the folder does not exist or holds no image.
    """
    root = pathlib.Path(path or "")
    if not path or not root.is_dir():
        raise ValueError(
            f"config.data.options.path is {path!r}, which is no folder; give one that holds a "
            "folder of images for each label"
        )
    found, others, seen = [], 0, set()
    for folder, inner, files in os.walk(root, followlinks=True):
        real = os.path.realpath(folder)
        inner[:] = sorted(name for name in inner if not name.startswith(".") and real not in seen)
        if real in seen:
            continue
        seen.add(real)
        for name in files:
            if name.startswith("."):
                continue
            if name.lower().endswith(SUFFIXES):
                found.append(pathlib.Path(folder, name).relative_to(root).as_posix())
            else:
                others += 1
    if not found:
        raise ValueError(f"{root} holds no image; images end in one of {', '.join(SUFFIXES)}")
    return sorted(found), others


class Source(file_dataset.Listing):
    """Random access to the images of a folder of folders.

    The label of an image is the name of its folder. The folders above it, if any, are less
    specific names; the outermost is the group.
    """

    def __init__(
        self,
        *,
        path: str,
        seed: int,
        group: str = "",
        **selection: Any,
    ):
        """Lists the folder; reads no image.

        Args:
          path: folder that holds the labels' folders.
          seed: has no effect.
          group: what all labels are ("bird"), for the label tree; "" takes the outermost folder.
          **selection: options of `file_dataset.Listing`, such as `part` and `subset`.

        Raises:
          ValueError: no folder, no images, or images outside of a label's folder.
        """
        del seed
        found, others = scan(path)
        if others:
            logging.info("%s: skipped %d files that are not images", path, others)
        loose = [name for name in found if "/" not in name]
        if loose:
            raise ValueError(
                f"{path} holds {len(loose)} images outside of a label's folder ({loose[0]!r}); "
                "put each into a folder named after what it shows"
            )
        paths, entries = {}, []
        for name in found:
            label_id = name.rpartition("/")[0]
            if label_id not in paths:
                paths[label_id] = [label_tree.clean(part) for part in label_id.split("/")]
            place = os.path.join(path, name)
            entries.append(file_dataset.Entry(name, label_id, paths[label_id][-1], place))
        super().__init__(
            entries,
            lambda entry: images.read(entry.place),
            label_tree.from_paths(paths, group, str(path)),
            name="folder",
            **selection,
        )
