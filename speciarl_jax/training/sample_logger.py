"""Samples of training for people to look at: images, their N answers, categories and rewards."""

import collections
import threading
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import ml_collections
import numpy as np
from etils import epath

from speciarl_jax.data import markdown_text, thumbnails
from speciarl_jax.evaluation.predictions import UNVERIFIED
from speciarl_jax.experiment.run import Run
from speciarl_jax.rollout.types import Samples
from speciarl_jax.runtime.jsonl import JsonLines
from speciarl_jax.verifiers.category import Category

FILE = "rollout_samples.jsonl"

_SIDE = 96  # pixels of a kept image's longer side
# Images are read some batches ahead of the step that learns from them.
_BATCHES = 64


class Gallery:
    """Small copies of the first images of each batch of this process, until they are written."""

    def __init__(self, train: ml_collections.ConfigDict):
        """Args: train: `config.train`."""
        # Dynamic sampling learns from a choice of the images that it samples.
        chosen = 4 if train.dynamic_sampling.max_rounds else 1
        wanted = train.samples_every and train.objective == "rl"
        self._each = train.num_logged_images * chosen if wanted else 0
        self._rows: collections.OrderedDict[int, dict[str, Any]] = collections.OrderedDict()
        self._lock = threading.Lock()

    def watch(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Takes the rows of a batch, from whichever thread reads them."""
        for row in rows[: self._each]:
            small = {**row, "image": thumbnails.shrink(np.asarray(row["image"]), _SIDE)}
            with self._lock:
                self._rows[int(row["image_id"])] = small
                self._rows.move_to_end(int(row["image_id"]))
                while len(self._rows) > self._each * _BATCHES:
                    self._rows.popitem(last=False)

    def row(self, image_id: int) -> Mapping[str, Any]:
        """What is known of an image; empty if it was not among those that were kept."""
        with self._lock:
            return self._rows.get(image_id, {})


class SampleWriter:
    """Writes samples to `rollout_samples.jsonl` and TensorBoard; only process 0 makes one."""

    def __init__(
        self, path: epath.PathLike, first_step: int, run: Run, gallery: Gallery, board: Any
    ):
        """Opens the file.

        Args:
          path: of the file.
          first_step: rows of this step and later are dropped: a resumed run writes them again.
          run: its tokenizer, labels and configuration.
          gallery: the images.
          board: a `tensorboardX.SummaryWriter`.
        """
        self._run, self._gallery, self._board = run, gallery, board
        self._every = run.config.train.samples_every
        self._lines = JsonLines(path, first_step) if self._every else None

    def write(self, step: int, samples: Samples) -> None:
        """Writes a step's samples if they are due: in the first step and every so many."""
        if self._lines is None or (step > 1 and step % self._every):
            return
        samples = jax.device_get(samples)
        for place, row in enumerate(rows_of(self._run, samples)):
            known = self._gallery.row(row["image_id"])
            described = {key: value for key, value in known.items() if key != "image"}
            row = {"step": step, **row, **described}
            if "image" in known:
                row["image"] = thumbnails.data_uri(known["image"])
                tag = f"rollout_images/{place}"
                self._board.add_image(tag, known["image"], step, dataformats="HWC")
            self._lines.add(row)
            self._board.add_text(f"rollout_samples/{place}", as_markdown(row), step)

    def flush(self) -> None:
        """Returns when all rows are written."""
        if self._lines is not None:
            self._lines.flush()

    def close(self) -> None:
        """Closes the file; the board is its owner's."""
        if self._lines is not None:
            self._lines.close()


def rows_of(run: Run, samples: Samples) -> list[dict[str, Any]]:
    """`image_id`, `label`, `responses`, `categories` and `rewards` of each image; numpy in.

    A reward is None where the answer takes no part in the update. The label is its id.
    """
    rows = []
    for k, responses in enumerate(run.answers(samples.tokens_KNT, samples.mask_KNT)):
        if not samples.weight_K[k]:
            continue
        judged = zip(samples.category_KN[k], samples.valid_KN[k], strict=True)
        rows.append(
            {
                "image_id": int(samples.image_id_K[k]),
                "label": run.labels.leaf_ids[int(samples.label_index_K[k])],
                "responses": responses,
                "categories": [
                    Category(int(c)).name.lower() if v else UNVERIFIED for c, v in judged
                ],
                "rewards": [None if np.isnan(r) else float(r) for r in samples.reward_KN[k]],
            }
        )
    return rows


def as_markdown(row: Mapping[str, Any]) -> str:
    """A row as a table in which nothing that the model said is markup."""
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
