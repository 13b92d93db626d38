"""CIFAR-100 as a laboratory: photographs of 100 classes in 20 superclasses, split for a study.

The base policy learns from the split "pretraining" of all classes. Reinforcement uses images that
it never saw, of some superclasses only; evaluation asks about those superclasses (in domain) and
about the others (out of domain). Images: Krizhevsky, 2009.
"""

import collections
import json
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from speciarl_jax.data import file_dataset, images, table_rows, tfds_images

# The published superclasses and their classes, spelled as the data set spells them.
SUPERCLASSES = {
    "aquatic_mammals": ("beaver", "dolphin", "otter", "seal", "whale"),
    "fish": ("aquarium_fish", "flatfish", "ray", "shark", "trout"),
    "flowers": ("orchid", "poppy", "rose", "sunflower", "tulip"),
    "food_containers": ("bottle", "bowl", "can", "cup", "plate"),
    "fruit_and_vegetables": ("apple", "mushroom", "orange", "pear", "sweet_pepper"),
    "household_electrical_devices": ("clock", "keyboard", "lamp", "telephone", "television"),
    "household_furniture": ("bed", "chair", "couch", "table", "wardrobe"),
    "insects": ("bee", "beetle", "butterfly", "caterpillar", "cockroach"),
    "large_carnivores": ("bear", "leopard", "lion", "tiger", "wolf"),
    "large_man-made_outdoor_things": ("bridge", "castle", "house", "road", "skyscraper"),
    "large_natural_outdoor_scenes": ("cloud", "forest", "mountain", "plain", "sea"),
    "large_omnivores_and_herbivores": ("camel", "cattle", "chimpanzee", "elephant", "kangaroo"),
    "medium_mammals": ("fox", "porcupine", "possum", "raccoon", "skunk"),
    "non-insect_invertebrates": ("crab", "lobster", "snail", "spider", "worm"),
    "people": ("baby", "boy", "girl", "man", "woman"),
    "reptiles": ("crocodile", "dinosaur", "lizard", "snake", "turtle"),
    "small_mammals": ("hamster", "mouse", "rabbit", "shrew", "squirrel"),
    "trees": ("maple_tree", "oak_tree", "palm_tree", "pine_tree", "willow_tree"),
    "vehicles_1": ("bicycle", "bus", "motorcycle", "pickup_truck", "train"),
    "vehicles_2": ("lawn_mower", "rocket", "streetcar", "tank", "tractor"),
}
# What reinforcement never sees: one superclass of each of five kinds of things.
_NOT_BROAD = {
    "insects",
    "flowers",
    "household_furniture",
    "vehicles_2",
    "large_natural_outdoor_scenes",
}
# All animals but people: one word, "animal", holds for every image.
_NARROW = {
    *("aquatic_mammals", "fish", "insects", "large_carnivores", "large_omnivores_and_herbivores"),
    *("medium_mammals", "non-insect_invertebrates", "reptiles", "small_mammals"),
}
# One superclass of each of five kinds of things that are no animals.
_NOT_WIDE = {
    "flowers",
    "household_furniture",
    "large_natural_outdoor_scenes",
    "people",
    "vehicles_2",
}
# design -> superclasses that reinforcement sees; evaluation out of domain asks about the others.
DESIGNS = {
    "broad": tuple(name for name in SUPERCLASSES if name not in _NOT_BROAD),
    "narrow": tuple(name for name in SUPERCLASSES if name in _NARROW),
    "wide": tuple(name for name in SUPERCLASSES if name not in _NOT_WIDE),
}
SIDES = ("in_domain", "out_of_domain")
# split -> ranks of its images within each class of the published training set (500 a class), in an
# order that only their names decide.
SPLITS = {"pretraining": (0, 390), "reinforcement": (390, 470), "validation": (470, 500)}


# As the files of the Hugging Face Hub have it.
_MISSPELLED = {"cra": "crab"}


class Source(file_dataset.Listing):
    """Random access to a split of the laboratory, 32 x 32 pixels."""

    def __init__(
        self,
        *,
        split: str,
        seed: int,
        superclasses: Sequence[str] = (),
        design: str = "",
        side: str = "in_domain",
        unlabelled: Sequence[str] = (),
        data_dir: str = "",
        path: str = "",
        **selection,
    ):
        """Lists the images; decodes none.

        Args:
          split: one of `SPLITS`, which part the published training set; "train" or "test" for a
            whole published split.
          seed: has no effect.
          superclasses: of `SUPERCLASSES`, the ones to keep; () for all.
          design: one of `DESIGNS`, in place of `superclasses`.
          side: of the design, one of `SIDES`: its superclasses, or all others.
          unlabelled: further superclasses whose images are listed without their labels, for
            config.loss.kl_unlabelled.
          data_dir: folder of data sets prepared by `speciarl_jax.tools.prepare_data`; "" for TFDS'
            own (~/tensorflow_datasets).
          path: folder with Parquet files instead, as the Hugging Face Hub has the data set: names
            with "train" or "test", columns `image` or `img` and `label` or `fine_label`.
          **selection: options of `file_dataset.Listing`, such as `subset`.

        Raises:
          ValueError: an unknown name, or files that are missing or hold something else.
        """
        if split not in (*SPLITS, "train", "test"):
            raise ValueError(
                f"cifar100: split is {split!r}; choose one of {[*SPLITS, 'train', 'test']}"
            )
        kept = _classes(superclasses, design, side)
        self._hidden = _classes(unlabelled, "", side) if unlabelled else set()
        if both := sorted(kept & self._hidden):
            raise ValueError(
                f"cifar100: {both} are to have labels and to have none; leave them out of "
                "`unlabelled`, or of `superclasses` or `design`"
            )
        self.unlabelled = list(unlabelled)
        kept |= self._hidden
        published = "test" if split == "test" else "train"
        if path:
            entries, content = _parquet(pathlib.Path(path), published)
            tree = json.loads((tfds_images.TREES / "cifar100.json").read_text("utf-8"))
        else:
            whole = tfds_images.Source(
                dataset="cifar100", split=published, seed=seed, data_dir=data_dir
            )
            entries, tree = whole.entries, whole.label_tree
            content = lambda: whole.content_fingerprint  # noqa: E731
        if split in SPLITS:
            entries = _ranked(entries, *SPLITS[split])
        entries = [entry for entry in entries if entry.label_id.partition("/")[2] in kept]
        # All labels stay in the tree: a completion may name a class of another superclass.
        read = _read if path else whole.read
        super().__init__(entries, read, tree, name="cifar100", content=content, **selection)

    def describe(self, index: int) -> dict[str, Any]:
        """Returns a row without its image; one without a label has `unlabelled`."""
        row = super().describe(index)
        if row["label_id"].partition("/")[2] not in self._hidden:
            return row
        hidden = {"label_id": "", "label": "", "generic": "", "unlabelled": True}
        return row | hidden


def _classes(superclasses: Sequence[str], design: str, side: str) -> set[str]:
    """Returns the classes to keep."""
    if design and superclasses:
        raise ValueError(
            f"cifar100: design is {design!r} and superclasses {tuple(superclasses)}; give one of "
            "the two"
        )
    if design and (design not in DESIGNS or side not in SIDES):
        raise ValueError(
            f"cifar100: design is {design!r} and side {side!r}; choose one of {sorted(DESIGNS)} "
            f"and one of {SIDES}"
        )
    unknown = sorted(set(superclasses) - set(SUPERCLASSES))
    if unknown:
        raise ValueError(
            f"cifar100: superclasses {unknown} are unknown; choose from {sorted(SUPERCLASSES)}"
        )
    chosen = set(superclasses) or set(SUPERCLASSES)
    if design:
        seen = set(DESIGNS[design])
        chosen = seen if side == "in_domain" else chosen - seen
    return {name for superclass in chosen for name in SUPERCLASSES[superclass]}


def _ranked(
    entries: Sequence[file_dataset.Entry], first: int, end: int
) -> list[file_dataset.Entry]:
    """Keeps the images of ranks `first` to `end` within each class, in the order of `entries`."""
    by_class = collections.defaultdict(list)
    for entry in entries:
        order = file_dataset.stable_hash(f"laboratory/{entry.key}"), entry.key
        by_class[entry.label_id].append(order)
    kept = {key for orders in by_class.values() for _, key in sorted(orders)[first:end]}
    return [entry for entry in entries if entry.key in kept]


def _parquet(folder: pathlib.Path, split: str):
    """Lists the images of a split in Parquet files, and what computes a hash of the files."""
    paths = sorted(folder.glob(f"*{split}*.parquet"))
    if not paths:
        raise ValueError(
            f"cifar100: {folder} has no Parquet file with {split!r} in its name; set "
            "config.data.options.path to the folder of the files, or to '' for the data set of "
            "speciarl_jax.tools.prepare_data"
        )
    known = {name for classes in SUPERCLASSES.values() for name in classes}
    entries = []
    for path in paths:
        columns = table_rows.columns_of(path)
        image, label = (
            next((name for name in names if name in columns), names[0])
            for names in (("image", "img"), ("label", "fine_label"))
        )
        for number, row in table_rows.rows_of(path, (image, label)):
            name = str(row[label]).strip().replace(" ", "_")
            name = _MISSPELLED.get(name, name)
            if name not in known:
                raise ValueError(
                    f"{path} row {number}: {row[label]!r} is no class of CIFAR-100; give the "
                    f"column {label!r} the names of the 100 classes, such as 'aquarium_fish'"
                )
            key = f"{split}_{len(entries):05d}"
            entries.append(
                file_dataset.Entry(key, f"cifar100/{name}", name.replace("_", " "), row[image])
            )
    found = dict(collections.Counter(entry.label_id for entry in entries))
    wanted = tfds_images.PUBLISHED["cifar100"].sizes[split] // len(known)
    if len(found) != len(known) or set(found.values()) != {wanted}:
        raise ValueError(
            f"cifar100: {folder} has {len(entries)} images of {len(found)} classes in {split!r}; "
            f"the published set has {wanted} of each of {len(known)}; get the files again"
        )
    return entries, lambda: "/".join(file_dataset.digest(path).hex()[:32] for path in paths)


def _read(entry: file_dataset.Entry) -> np.ndarray:
    return images.decode(entry.place.read(), f"cifar100 {entry.key!r}")
