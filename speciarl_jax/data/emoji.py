"""The benchmark that ships with the package: emoji of six designers in nine styles.

Emoji are drawings, not photographs. A label tree comes with them. Designers never share images, so
a held-out style family is new to a policy that was trained on the others. Licences:
`emoji_assets/LICENSES.md`.
"""

import contextlib
import dataclasses
import functools
import json
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from PIL import Image

from speciarl_jax.data import augment, file_dataset

ASSETS = pathlib.Path(__file__).parent / "emoji_assets"
TAXONOMY_PATH = ASSETS / "taxonomy.json"
CELL = 64  # pixels

STYLE_FAMILIES = {
    "noto": ("noto", "noto-v1"),
    "fluent": ("fluent-emoji", "fluent-emoji-flat"),
    "emojione": ("emojione", "emojione-v1"),
    "openmoji": ("openmoji",),
    "fxemoji": ("fxemoji",),
    "twemoji": ("twemoji",),
}
# Splits hold whole families: two styles of one designer are nearly the same images.
SPLITS = {
    "pretraining": ("noto", "fluent", "emojione", "openmoji"),
    "reinforcement": ("fxemoji",),
    "held_out": ("twemoji",),
}
CONCEPT_SETS = ("benchmark", "all")


@contextlib.contextmanager
def _reading(path: pathlib.Path) -> Iterator[None]:
    """Turns any error that a missing or damaged file causes into one that says how to mend it."""
    try:
        yield
    except (OSError, ValueError, LookupError, TypeError, AttributeError, SyntaxError) as error:
        raise ValueError(
            f"{path} is missing or damaged ({type(error).__name__}: {error}); restore it from the "
            "repository or install the package again (scripts/build_emoji.py rebuilds the sheets)"
        ) from error


@functools.cache
def _atlas(style: str, folder: pathlib.Path = ASSETS) -> np.ndarray:
    """Reads all drawings of a style: uint8 [keys, 64, 64, 4]."""
    path = folder / f"{style}_64.png"
    keys, columns = len(_index(folder)["keys"]), _index(folder)["cols"]
    rows = -(-keys // columns)
    width, height = columns * CELL, rows * CELL
    with _reading(path):
        sheet = np.asarray(Image.open(path).convert("RGBA"))
        if sheet.shape[:2] != (height, width):
            found = f"{sheet.shape[1]} x {sheet.shape[0]}"
            raise ValueError(f"the sheet is {found} px, the index needs {width} x {height}")
    cells = sheet.reshape(rows, CELL, columns, CELL, 4).swapaxes(1, 2)
    return cells.reshape(-1, CELL, CELL, 4)[:keys]


@functools.cache
def _index(folder: pathlib.Path = ASSETS) -> dict[str, Any]:
    """Reads which cell of a sheet holds which drawing: `keys`, `cols`, and `has` of each style."""
    path = folder / "index.json"
    with _reading(path):
        index = json.loads(path.read_text(encoding="utf-8"))
        count = len(index["keys"])
        if index["cols"] < 1 or any(len(cells) != count for cells in index["has"].values()):
            raise ValueError(f"'cols' and the lists in 'has' do not fit {count} keys")
    return index


@dataclasses.dataclass(frozen=True)
class Concept:
    """A leaf of the label tree."""

    label_id: str
    name: str
    synonyms: tuple[str, ...]
    # Names between the leaf and its group, nearest first, one for each level.
    ancestors: tuple[str, ...]
    generic: str  # the group
    keys: tuple[str, ...]  # code points of its emoji


@functools.cache
def _taxonomy(path: pathlib.Path = TAXONOMY_PATH) -> dict[str, Any]:
    """Reads `groups`, the label ids of the `benchmark`, and `leaves`: label id -> `Concept`."""
    with _reading(path):
        tree = json.loads(path.read_text(encoding="utf-8"))
        leaves = {
            label_id: Concept(
                label_id=label_id,
                name=leaf["name"],
                synonyms=tuple(leaf["synonyms"]),
                ancestors=tuple(node[0] for node in leaf["ancestors"]),
                generic=leaf["generic"],
                keys=tuple(leaf["keys"]),
            )
            for label_id, leaf in tree["leaves"].items()
        }
        groups, benchmark = sorted(tree["groups"]), frozenset(tree["benchmark"])
    return {"groups": groups, "benchmark": benchmark, "leaves": leaves}


def concepts(which: str = "benchmark", domains: Sequence[str] | None = None) -> list[Concept]:
    """Returns the leaves of the label tree, in the order of the file.

    Args:
      which: "benchmark" (leaves that most designers have drawn) or "all".
      domains: groups to keep ("animal", "food", ...); None for all.

    Raises:
      ValueError: an unknown set or group, none left, or a damaged label tree.
    """
    tree = _taxonomy()
    if which not in CONCEPT_SETS:
        raise ValueError(f"concept set {which!r} is unknown; choose one of {CONCEPT_SETS}")
    unknown = sorted(set(domains or ()) - set(tree["groups"]))
    if unknown:
        raise ValueError(f"domains {unknown} are unknown; choose from {tree['groups']}")
    names = tree["benchmark"] if which == "benchmark" else tree["leaves"]
    found = [
        concept
        for label_id, concept in tree["leaves"].items()
        if label_id in names and (not domains or concept.generic in domains)
    ]
    if not found:
        raise ValueError(f"no concept of {which!r} lies in the domains {domains}")
    return found


class Source:
    """Random access to augmented images (a Grain `RandomAccessDataSource`).

    An image depends only on the seed and on its own identity (style, emoji, view). The order, the
    process and the other concepts in the set change nothing.

    Attributes:
      TAXONOMY_PATH: file with the label tree, for the taxonomy verifier.
    """

    TAXONOMY_PATH = TAXONOMY_PATH

    def __init__(
        self,
        *,
        split: str,
        difficulty: str,
        image_size: int,
        seed: int,
        concept_set: str = "benchmark",
        domains: Sequence[str] | None = None,
        views: int = 1,
    ):
        """Lists the images.

        Args:
          split: one of `SPLITS`.
          difficulty: one of `augment.DIFFICULTIES`.
          image_size: side of an image, pixels.
          concept_set: "benchmark" or "all", as for `concepts`.
          domains: groups to keep, as for `concepts`.
          views: number of differently augmented images of each drawing.

        Raises:
          ValueError: an unknown name, or a damaged file of the benchmark.
        """
        if split not in SPLITS:
            raise ValueError(f"split {split!r} is unknown; choose one of {sorted(SPLITS)}")
        augment.parameters(difficulty, np.random.default_rng(0))  # raises if it is unknown
        if image_size < 8 or views < 1:
            raise ValueError(
                f"image_size is {image_size} and views {views}; they must be at least 8 and 1"
            )
        self._difficulty, self._image_size, self._seed = difficulty, image_size, seed
        self.concepts = concepts(concept_set, domains)
        index = _index()
        position = {key: i for i, key in enumerate(index["keys"])}
        styles = [style for family in SPLITS[split] for style in STYLE_FAMILIES[family]]
        with _reading(ASSETS / "index.json"):
            self._rows = [
                (style, key, position[key], concept, view)
                for view in range(views)
                for style in styles
                for concept in self.concepts
                for key in concept.keys
                if index["has"][style][position[key]]
            ]
        for style in styles:
            _atlas(style)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Draws an image: `image` uint8 [S, S, 3], `image_id`, names and difficulty level."""
        row, (style, _, cell, _, _) = self.describe(index), self._rows[index]
        rng = self._rng(row["image_id"])
        _, params = augment.parameters(self._difficulty, rng)
        return {"image": augment.compose(_atlas(style)[cell], rng, params, self._image_size), **row}

    def describe(self, index: int) -> dict[str, Any]:
        """Returns a row without its image; draws nothing."""
        style, key, _, concept, view = self._rows[index]
        image_id = file_dataset.stable_hash(f"{style}/{key}/{view}") >> 33
        return {
            "image_id": image_id,
            "label_id": concept.label_id,
            "label": concept.name,
            "generic": concept.generic,
            "style": style,
            "key": key,
            "difficulty": augment.parameters(self._difficulty, self._rng(image_id))[0],
        }

    def _rng(self, image_id: int) -> np.random.Generator:
        return np.random.default_rng([self._seed, image_id])
