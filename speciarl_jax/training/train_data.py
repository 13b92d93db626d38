"""This process's share of the training batches."""

from collections.abc import Callable, Sequence

import jax
import numpy as np

from speciarl_jax.data import pipeline
from speciarl_jax.experiment import validate_config
from speciarl_jax.experiment.run import Run
from speciarl_jax.training import sft_step


def training_stream(run: Run, see: Callable[[Sequence], None] = lambda rows: None):
    """This process's share of the batches, epoch after epoch; `see` is shown the rows of each."""
    config, processes = run.config, jax.process_count()
    first, size = run.source(config.seed), validate_config.sampled_images(config)
    build = sft_step.builder(run) if config.train.objective == "sft" else run.build

    def build_batch(rows):
        see(rows)
        return build(rows, size // processes)

    def source_of_epoch(epoch):
        # Of both, or neighbouring seeds would share most of their images.
        seed = int(np.random.SeedSequence([config.seed, epoch]).generate_state(1)[0])
        return first.with_seed(seed) if hasattr(first, "with_seed") else run.source(seed)

    return pipeline.training_batches(
        source_of_epoch,
        build_batch,
        batch_size=size,
        seed=config.seed,
        workers=config.data.workers,
        process=jax.process_index(),
        processes=processes,
    )
