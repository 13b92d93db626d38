"""Rollouts of one image, as writers show them."""

import dataclasses
from collections.abc import Sequence

import numpy as np

COLUMNS = ("image", "image_id", "label", "prompt", "completion", "category", "reward")


@dataclasses.dataclass(frozen=True)
class Sample:
    """Holds one image with its N rollouts.

    Attributes:
      image: uint8 [H, W, 3], small; None where the pixels were not kept.
      image_id: of the data set.
      label: the true label.
      prompt: the instruction to the policy.
      completions: N texts.
      categories: N names of categories, or "unverified".
      rewards: N rewards; None where the rollout takes no part in the update.
    """

    image: np.ndarray | None
    image_id: int
    label: str
    prompt: str
    completions: Sequence[str]
    categories: Sequence[str]
    rewards: Sequence[float | None]

    def rows(self, image: object) -> list[list[object]]:
        """Returns a row of `COLUMNS` for each rollout, with `image` in the place of the pixels."""
        known = [image, self.image_id, self.label, self.prompt]
        answers = zip(self.completions, self.categories, self.rewards, strict=True)
        return [[*known, *answer] for answer in answers]
