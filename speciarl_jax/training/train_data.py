"""This process's share of the training batches, and how a step takes one."""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from speciarl_jax.data import pipeline
from speciarl_jax.experiment.run import Run
from speciarl_jax.experiment.validate_config import sampled_images
from speciarl_jax.models.prompt_batch import PromptBatch
from speciarl_jax.training import sft_step

# Dynamic sampling learns from a selection of the images that it samples.
_LOGGED_OF_DYNAMIC = 4


class HostBatch(NamedTuple):
    """Holds a batch on the host."""

    batch: PromptBatch  # this process's rows, numpy
    logged_rows: list[Mapping[str, Any]]  # the rows of its first images, which the logger may show


def training_batches(run: Run) -> Iterator[HostBatch]:
    """Yields this process's share of the batches, epoch after epoch; resumable as `pipeline` is."""
    config, processes = run.config, jax.process_count()
    size = sampled_images(config)
    build = sft_step.builder(run) if config.train.objective == "sft" else run.build
    logged = run.algorithm.num_logged_images if config.train.objective == "rl" else 0
    if config.train.dynamic_sampling.max_rounds:
        logged *= _LOGGED_OF_DYNAMIC

    def source_of_epoch(epoch: int) -> Any:
        # A seed of both, or neighbouring seeds would share most of their images.
        seed = int(np.random.SeedSequence([config.seed, epoch]).generate_state(1)[0])
        return run.train_source_of(seed)

    return pipeline.training_batches(
        source_of_epoch,
        lambda rows: HostBatch(build(rows, size // processes), rows[:logged]),
        batch_size=size,
        seed=config.seed,
        workers=config.data.workers,
        process=jax.process_index(),
        processes=processes,
    )


def images_seen(run: Run, stream: Mapping[str, Any]) -> dict[str, float]:
    """Returns the metrics of how far the run is in its data, unreadable images included.

    Args:
      stream: state of `training_batches`, which counts the rows of one process.
    """
    seen = stream["next_index"] * jax.process_count()
    return {"data/images_seen": float(seen), "data/epoch": seen / len(run.train_source)}


def on_devices(
    run: Run, batches: Iterator[HostBatch], rows: list[Mapping[str, Any]]
) -> PromptBatch:
    """Puts the next batch on the devices and adds its rows to `rows`."""
    found = next(batches)
    rows.extend(found.logged_rows)
    return run.place(found.batch)
