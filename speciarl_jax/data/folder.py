"""Data set of a user's own images: a folder for each label.

birds/albatross/one.jpg
birds/albatross/two.png
birds/001.Black_footed_Albatross/...        the label is "Black footed Albatross"
animals/bird/duck/mallard/...               nested folders make a label tree
train/rose/..., val/rose/..., test/rose/... splits are recognised and are no labels
"""

import os
import pathlib
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from absl import logging

from speciarl_jax.data import (
    file_dataset,
    image_files,
    images,
    label_names,
    label_tree,
    splits,
    table_rows,
)

# Folders that storage systems and archives make, in lower case.
_IGNORED = {
    *("@eadir", "@recycle", "@recently-snapshot", "#recycle", "#snapshot", "$recycle.bin"),
    *("__macosx", "lost+found", "system volume information", "__pycache__"),
}


def scan(path: str | os.PathLike) -> tuple[list[str], Counter]:
    """Lists the images below a folder.

    Follows links, but enters each folder once. Skips names that begin with a dot, and folders of
    storage systems ("@eaDir"). Opens nothing.

    Returns:
      Sorted paths relative to the folder with "/" as separator, and the numbers of other files by
      their endings.

    Raises:
      ValueError: the folder does not exist or holds no image.
    """
    root = pathlib.Path(path or "")
    if not path or not root.is_dir():
        hint = "; write it with '/' in place of '\\'" if "\\" in str(path) else ""
        raise ValueError(
            f"config.data.options.path is {path!r}, which is no folder; give one that holds a "
            f"folder of images for each label{hint}"
        )
    suffixes = image_files.suffixes()
    found, others, seen = [], Counter(), set()
    for folder, inner, files in os.walk(root, followlinks=True):
        real = os.path.realpath(folder)
        inner[:] = sorted(name for name in inner if not _is_hidden(name) and real not in seen)
        if real in seen:
            continue
        seen.add(real)
        for name in files:
            if name.startswith("."):
                continue
            suffix = os.path.splitext(name)[1].lower()
            if suffix not in suffixes:
                others[suffix or "no ending"] += 1
            elif not os.path.isfile(os.path.join(folder, name)) and os.path.exists(
                os.path.join(folder, name)
            ):
                others["pipe or device"] += 1
            else:
                found.append(pathlib.Path(folder, name).relative_to(root).as_posix())
    if not found:
        others_said = f" ({describe_others(others)[0]})" if others else ""
        hint = ""
        if any(suffix in others for suffix in (*table_rows.SUFFIXES, ".arrow")):
            hint = "; configs/own_table.py reads tables, and folders of tables"
        raise ValueError(
            f"{root} holds no image{others_said}; images end in one of {', '.join(suffixes)}{hint}"
        )
    return sorted(found), others


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name.casefold() in _IGNORED


def describe_others(others: Mapping[str, int]) -> tuple[str, bool]:
    """Describes files that were passed over, and tells whether some of them are images."""
    names = sorted(others, key=lambda suffix: (not image_files.is_foreign(suffix), suffix))
    text = "passed over " + ", ".join(f"{others[name]} {name}" for name in names)
    heif = [name for name in names if name in (".heic", ".heif", ".hif")]
    if heif:
        text += f"; to read {heif[0]}: {image_files.HOW_TO_READ_HEIF}"
    return text, any(map(image_files.is_foreign, names))


class Source(file_dataset.Listing):
    """Random access to the images of a folder of folders.

    The label of an image is the name of its folder. The folders above it, if any, are less
    specific names; the outermost is the group. Folders that are named after splits are no labels.
    """

    def __init__(
        self,
        *,
        path: str,
        seed: int,
        group: str = "",
        split: str = "",
        part: str = "all",
        **selection: Any,
    ):
        """Lists the folder; reads no image.

        Args:
          path: folder that holds the labels' folders.
          seed: has no effect.
          group: what all labels are ("bird"), for the label tree; "" takes the outermost folder.
          split: name of a split's folder to read; "" for the one that fits `part`; "none" if
            folders with such names are labels.
          part: of `file_dataset.PARTS`; splits of the folder's own come before it.
          **selection: options of `file_dataset.Listing`, such as `subset`.

        Raises:
          ValueError: no folder, no images, images outside of a label's folder, or folders of which
            some are named after splits and others are not.
        """
        del seed
        found, others = scan(path)
        if others:
            said, images_among = describe_others(others)
            (logging.warning if images_among else logging.info)("%s: %s", path, said)
        folders = {name: tuple(name.split("/")[:-1]) for name in found}
        places = {names: ("", names) for names in folders.values()}
        if split != splits.NONE:
            places = splits.without_split(set(folders.values()), str(path))
        by_split: dict[str, list[str]] = {}
        for name in found:
            by_split.setdefault(places[folders[name]][0], []).append(name)
        chosen = [""]
        if list(by_split) != [""]:
            chosen, part = splits.chosen(by_split, split, part, str(path))
        elif split not in ("", splits.NONE):
            raise ValueError(f"{path} has no splits, so no {split!r}; set the option split to ''")
        _check_loose(found, folders, places, chosen, others, str(path))
        same = _unify([place for place in places.values() if place[1]], str(path))
        paths = label_names.clean_paths(same.values())
        entries = []
        for name in found:
            own, names = places[folders[name]]
            if own in chosen:
                names = same[names]
                place = os.path.join(path, name)
                label = paths[names][-1]
                entries.append(file_dataset.Entry(name, "/".join(names), label, place))
        _report_sources(paths, str(path))
        label_names.report_numbers((names[-1] for names in paths.values()), str(path))
        super().__init__(
            entries,
            lambda entry: images.read(entry.place),
            label_tree.from_paths(
                {"/".join(names): said for names, said in paths.items()}, group, str(path)
            ),
            name="folder",
            part=part,
            **selection,
        )


def _check_loose(found, folders, places, chosen, others, path):
    """Refuses images outside of a label's folder; those of splits that are not read are logged."""
    loose = [name for name in found if not places[folders[name]][1]]
    mine = [name for name in loose if places[folders[name]][0] in chosen]
    if mine:
        raise ValueError(
            f"{path} holds {len(mine)} images outside of a label's folder ({mine[0]!r}); put each "
            "into a folder named after what it shows" + _metadata_hint(others, path)
        )
    if loose:
        logging.warning(
            "%s: passed over %d images that lie in no label's folder (%s, ...), in splits that are "
            "not read",
            *(path, len(loose), loose[0]),
        )


def _report_sources(paths: Mapping[tuple[str, ...], list[str]], where: str) -> None:
    """Logs outermost folders that hold the same labels, as those of sources, styles or folds do."""
    above: dict[tuple[str, ...], set[str]] = {}
    for names in paths:
        if len(names) > 1:
            above.setdefault(names[1:], set()).add(names[0])
    again = [names for names, tops in above.items() if len(tops) > 1]
    if len(again) * 2 > len(above):
        tops = sorted(set.union(*(above[names] for names in again)))
        logging.warning(
            "%s: the same labels (%s, ...) lie in %s. If these folders are sources or folds and "
            "not names of what the images show, give one of them as the path: an answer that says "
            "such a name counts as right",
            *(where, "/".join(again[0]), ", ".join(map(repr, tops[:5]))),
        )


def _metadata_hint(others: Mapping[str, int], path: str) -> str:
    if not any(suffix in others for suffix in table_rows.SUFFIXES):
        return ""
    return f"; if a table says what they show, use configs/own_table.py with the path {path}"


def _unify(
    places: Iterable[tuple[str, tuple[str, ...]]], where: str
) -> dict[tuple[str, ...], tuple[str, ...]]:
    """Makes one label of folders that lie at different depths in different splits.

    A folder of the same name is the same label if no split holds both, and if the names above the
    one are among those above the other. The deeper one says more.

    Returns:
      The folders of each image, without split -> those of its label.
    """
    found, splits_of = {}, {}
    for split, names in places:
        splits_of.setdefault(names, set()).add(split)
    by_name: dict[str, list[tuple[str, ...]]] = {}
    for names in sorted(splits_of, key=lambda names: (-len(names), names)):
        kept = by_name.setdefault(_key(names[-1]) if names else "", [])
        for other in kept:
            apart = not splits_of[names] & splits_of[other]
            if apart and _is_within([*map(_key, names)], [*map(_key, other)]):
                logging.warning(
                    "%s: the label %r lies in %r in one split and in %r in another; taken as one",
                    *(where, other[-1], "/".join(names), "/".join(other)),
                )
                found[names] = other
                splits_of[other] |= splits_of[names]
                break
        else:
            kept.append(names)
            found[names] = names
    return found


def _key(name: str) -> str:
    return label_names.tidy(name.replace("-", " ")).casefold()


def _is_within(few: list[str], many: list[str]) -> bool:
    """Tells whether all of `few` are in `many`, in the same order."""
    rest = iter(many)
    return all(name in rest for name in few)
