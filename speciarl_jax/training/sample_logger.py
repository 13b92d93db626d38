"""Rollouts of training for people to look at: images, completions, categories and rewards."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from etils import epath

from speciarl_jax.data import pipeline, thumbnails
from speciarl_jax.evaluation.predictions import names_of
from speciarl_jax.experiment.run import Run
from speciarl_jax.rollout.types import Samples
from speciarl_jax.runtime.jsonl import JsonLines
from speciarl_jax.training.writers.sample import Sample

FILE = "rollout_samples.jsonl"

_SIDE = 96  # pixels of a kept image's longer side


class SampleLogger:
    """Writes rollouts to `rollout_samples.jsonl` and to writers; only process 0 makes one."""

    def __init__(self, path: epath.PathLike, first_step: int, run: Run, writers: Any):
        """Opens the file.

        Args:
          first_step: rows of this step and later are dropped: a resumed run writes them again.
          writers: has `write_samples`, as `MetricWriter` and `Writer` have.
        """
        self._run, self._writers = run, writers
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
        shown = []
        for row in rows_of(self._run, jax.device_get(samples)):
            source = dict(known.get(row["image_id"], {}))
            pixels, small = source.pop("image", None), None
            source.pop(pipeline.REPEAT, None)
            row = {"step": step, **row, **source}
            if pixels is not None:
                small = thumbnails.shrink(np.asarray(pixels), _SIDE)
                row["image"] = thumbnails.data_uri(small)
            self._lines.add(row)
            shown.append(self._sample(row, small))
        self._writers.write_samples(step, shown)

    def _sample(self, row: Mapping[str, Any], image: np.ndarray | None) -> Sample:
        return Sample(
            image=image,
            image_id=row["image_id"],
            label=row["label"],
            prompt=self._run.builder.text,
            completions=row["responses"],
            categories=row["categories"],
            rewards=row["rewards"],
        )

    def flush(self) -> None:
        """Returns when all rows are written."""
        if self._lines is not None:
            self._lines.flush()


def rows_of(run: Run, samples: Samples) -> list[dict[str, Any]]:
    """Returns `image_id`, `label`, `responses`, `categories` and `rewards` of each image.

    A reward is None where the rollout takes no part in the update. The label is its id, or "".
    """
    rows = []
    for k, responses in enumerate(run.answers(samples.tokens_KNT, samples.mask_KNT)):
        if not samples.weight_K[k]:
            continue
        label = int(samples.label_index_K[k])
        rows.append(
            {
                "image_id": int(samples.image_id_K[k]),
                "label": run.labels.leaf_ids[label] if label >= 0 else "",
                "responses": responses,
                "categories": names_of(samples.category_KN[k], samples.valid_KN[k]),
                "rewards": [None if np.isnan(r) else float(r) for r in samples.reward_KN[k]],
            }
        )
    return rows
