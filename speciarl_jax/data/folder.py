"""A user's own images: a folder of folders, each named after what its images show.

birds/albatross/one.jpg
birds/albatross/two.png
birds/001.Black_footed_Albatross/...        the label is "Black footed Albatross"
animals/bird/duck/mallard/...               nested: a label path, and so a label tree
"""

import os
import pathlib

from absl import logging

from speciarl_jax.data import file_dataset, images, label_tree

SUFFIXES = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff")


def scan(path: str | os.PathLike) -> tuple[list[str], int]:
    """The images below a folder, relative, sorted, `/` between; and how many files are none.

    Links are followed, each folder once. Names that begin with a dot are passed over.

    Raises:
      ValueError: there is no such folder, or no image in it.
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

    An image's label is its folder; the folders above, if any, are less specific names, the
    outermost the group.
    """

    def __init__(
        self,
        *,
        path: str,
        seed: int,
        group: str = "",
        part: str = "all",
        held_out_share: float = 0.1,
        subset: int = 0,
        subset_seed: int = 0,
    ):
        """Lists the folder; reads no image.

        Args:
          path: of the outermost folder, which is no label itself.
          seed: changes nothing.
          group: what all labels are ("bird"), for the label tree; "" for the outermost label.
          part: "all", or "training" or "held_out" of a folder without a split of its own.
          held_out_share: as for `file_dataset.choose_part`.
          subset: as for `file_dataset.choose_subset`.
          subset_seed: as for `file_dataset.choose_subset`.

        Raises:
          ValueError: no folder, no images, or images outside of a label's folder.
        """
        del seed
        found, others = scan(path)
        if others:
            logging.info("%s: passed over %d files that are no images", path, others)
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
                paths[label_id] = [label_tree.clean(part_) for part_ in label_id.split("/")]
            place = os.path.join(path, name)
            entries.append(file_dataset.Entry(name, label_id, paths[label_id][-1], place))
        super().__init__(
            entries,
            lambda entry: images.read(entry.place),
            label_tree.from_paths(paths, group, str(path)),
            name="folder",
            part=part,
            held_out_share=held_out_share,
            subset=subset,
            subset_seed=subset_seed,
        )
