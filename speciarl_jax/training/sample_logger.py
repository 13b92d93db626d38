"""Rollouts of training for people to look at: images, completions, categories and rewards."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from etils import epath

from speciarl_jax.data import markdown_text, pipeline, thumbnails
from speciarl_jax.evaluation.predictions import names_of
from speciarl_jax.experiment.run import Run
from speciarl_jax.rollout.types import Samples
from speciarl_jax.runtime.jsonl import JsonLines

FILE = "rollout_samples.jsonl"

_SIDE = 96  # pixels of a kept image's longer side


class SampleLogger:
    """Writes rollouts to `rollout_samples.jsonl` and TensorBoard; only process 0 makes one."""

    def __init__(self, path: epath.PathLike, first_step: int, run: Run, board: Any):
        """Opens the file.

        Args:
          first_step: rows of this step and later are dropped: a resumed run writes them again.
          board: a `tensorboardX.SummaryWriter`.
        """
        self._run, self._board = run, board
        self._every = run.config.train.samples_every
        self._lines = JsonLines(path, first_step) if self._every else None

    def write(self, step: int, samples: Samples, sources: Sequence[Mapping[str, Any]]) -> None:
        """Writes a step's samples if they are due: in the first step and every so many.

        Args:
          sources: rows of the data set, with pixels, among which those of the samples are.
        """
        if self._lines is None or (step > 1 and step % self._every):
            return
        known = {pipeline.draw_id(row): row for row in sources}
        for place, row in enumerate(rows_of(self._run, jax.device_get(samples))):
            source = dict(known.get(row["image_id"], {}))
            pixels = source.pop("image", None)
            source.pop(pipeline.REPEAT, None)
            row = {"step": step, **row, **source}
            if pixels is not None:
                small = thumbnails.shrink(np.asarray(pixels), _SIDE)
                row["image"] = thumbnails.data_uri(small)
                self._board.add_image(f"rollout_images/{place}", small, step, dataformats="HWC")
            self._lines.add(row)
            self._board.add_text(f"rollout_samples/{place}", as_markdown(row), step)

    def flush(self) -> None:
        """Returns when all rows are written."""
        if self._lines is not None:
            self._lines.flush()


def rows_of(run: Run, samples: Samples) -> list[dict[str, Any]]:
    """Returns `image_id`, `label`, `responses`, `categories` and `rewards` of each image.

    A reward is None where the rollout takes no part in the update. The label is its id.
    """
    rows = []
    for k, responses in enumerate(run.answers(samples.tokens_KNT, samples.mask_KNT)):
        if not samples.weight_K[k]:
            continue
        rows.append(
            {
                "image_id": int(samples.image_id_K[k]),
                "label": run.labels.leaf_ids[int(samples.label_index_K[k])],
                "responses": responses,
                "categories": names_of(samples.category_KN[k], samples.valid_KN[k]),
                "rewards": [None if np.isnan(r) else float(r) for r in samples.reward_KN[k]],
            }
        )
    return rows


def as_markdown(row: Mapping[str, Any]) -> str:
    """Writes a row as a table in which nothing that the model said is markup."""
    lines = [
        f"**{markdown_text.escape(row['label'])}** (image {row['image_id']})",
        "",
        "| answer | category | reward |",
        "|---|---|---|",
    ]
    for said, category, reward in zip(
        row["responses"], row["categories"], row["rewards"], strict=True
    ):
        earned = "" if reward is None else f"{reward:g}"
        lines.append(f"| {markdown_text.escape(said)} | {category.replace('_', ' ')} | {earned} |")
    return "\n".join(lines)
