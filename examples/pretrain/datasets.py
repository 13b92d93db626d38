"""Opens the images that a stage learns from, and augments photographs anew in every epoch."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import ml_collections
import numpy as np
from PIL import Image, ImageEnhance, ImageOps

from examples.pretrain import answers
from speciarl_jax.data import label_tree
from speciarl_jax.runtime import plugins


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """Holds how photographs are changed; the default changes nothing.

    Attributes:
      shift: largest shift in each direction, pixels; edges are reflected.
      flip: probability of a left-right flip.
      colour: largest change of brightness, contrast and saturation, as a share.
      cutout: side of a square that is painted grey, pixels.
    """

    shift: int = 0
    flip: float = 0.0
    colour: float = 0.0
    cutout: int = 0

    def __call__(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Returns a changed copy of an image, uint8 [height, width, 3]."""
        height, width, _ = image.shape
        if self.shift:
            top, left = rng.integers(0, 2 * self.shift + 1, 2)
            padded = np.pad(image, ((self.shift,) * 2, (self.shift,) * 2, (0, 0)), "reflect")
            image = padded[top : top + height, left : left + width]
        if rng.random() < self.flip:
            image = image[:, ::-1]
        if self.colour:
            changed = Image.fromarray(np.ascontiguousarray(image))
            for kind in (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color):
                changed = kind(changed).enhance(1 + self.colour * rng.uniform(-1, 1))
            image = np.asarray(changed)
        image = image.copy()
        if self.cutout:
            y, x = rng.integers(0, height), rng.integers(0, width)
            half = self.cutout // 2
            image[max(0, y - half) : y + half, max(0, x - half) : x + half] = 128
        return image


class Square:
    """Random access to the images of a source: the middle of each, scaled to one size."""

    def __init__(self, source: Sequence[Mapping[str, Any]], side: int):
        """Args: source: random access to rows. side: of the squares, pixels."""
        self._source, self._side = source, side

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> dict[str, Any]:
        row = self._source[index]
        image = ImageOps.fit(Image.fromarray(row["image"]), (self._side, self._side))
        return {**row, "image": np.asarray(image)}


class Augmented:
    """Random access to the images of a source, each changed as seed and image decide."""

    def __init__(self, source: Sequence[Mapping[str, Any]], change: Augmentation, seed: int):
        self._source, self._change, self._seed = source, change, seed

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> dict[str, Any]:
        row = self._source[index]
        rng = np.random.default_rng([self._seed, row["image_id"]])
        return {**row, "image": self._change(row["image"], rng)}


class DataSet:
    """Opens the sources of a stage.

    Attributes:
      label_tree: of the data set.
      concepts: what completions name, in the order of the tree.
    """

    def __init__(self, config: ml_collections.ConfigDict, stage: str):
        """Opens the images of `config.data`, with the differences of the section `stage`.

        Raises:
          ValueError: an unknown name, missing files, or images of different sizes.
          TypeError: an option that the data set or the augmentation does not have.
        """
        self._data, self._seed = config.data, config.seed
        self._options = dict(config[stage].options)
        self._augmentation = Augmentation(**config.data.augmentation)
        self._opened = self._open({}, config.seed)
        size = self._squared(self._opened)[0]["image"].shape[:2]
        if size != (config.data.image_size,) * 2:
            raise ValueError(
                f"images of {config.data.name} have {size[1]} x {size[0]} pixels and "
                f"config.data.image_size is {config.data.image_size}; set it to the side of square "
                "images, or config.data.crop=True to take the middle of each image in that size"
            )
        self.label_tree = label_tree.read(self._opened)
        rows = map(self._opened.describe, range(len(self._opened)))
        self.concepts = answers.concepts(self.label_tree, {row["label_id"] for row in rows})

    def open(self, changes: Mapping[str, Any], seed: int) -> Sequence[Mapping[str, Any]]:
        """Opens images without augmentation, other than what the data set does itself."""
        return self._squared(self._open(changes, seed))

    def _open(self, changes, seed):
        find = plugins.find("data", self._data.name, "Source")
        return find(seed=seed, **{**self._data.options, **self._options, **changes})

    def _squared(self, source):
        return Square(source, self._data.image_size) if self._data.crop else source

    def epoch(self, number: int) -> Sequence[Mapping[str, Any]]:
        """Returns the images of an epoch, augmented as its number decides."""
        seed = self._seed + number
        if hasattr(self._opened, "with_seed"):
            source = self._opened.with_seed(seed)
        else:
            source = self._open({}, seed)
        source = self._squared(source)
        if self._augmentation == Augmentation():
            return source
        return Augmented(source, self._augmentation, seed)
