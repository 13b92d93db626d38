"""A fixed choice of the images of a data set."""

from collections.abc import Mapping, Sequence
from typing import Any

from speciarl_jax.data import file_dataset, images


class Subset:
    """Random access to some images of a source, in its order."""

    def __init__(self, source: Sequence[Mapping[str, Any]], count: int, seed: int):
        """Chooses the images.

        Args:
          source: random access to rows.
          count: number of images; 0, or more than there are: all of them.
          seed: decides which. The same choice on every machine, and part of any larger one.
        """
        order = range(len(source))
        if 0 < count < len(source):
            chosen = sorted(order, key=lambda i: (file_dataset.stable_hash(f"{seed}/{i}"), i))
            order = sorted(chosen[:count])
        self._source, self._order = source, order

    def __len__(self) -> int:
        return len(self._order)

    def __getitem__(self, index: int) -> Mapping[str, Any]:
        """Reads a row."""
        return self._source[self._order[index]]

    def describe(self, index: int) -> dict[str, Any]:
        """Returns a row without its image."""
        return images.describe(self._source, self._order[index])
