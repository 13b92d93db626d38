"""Compiles the first step while the base policy is evaluated."""

import contextlib
import threading
from collections.abc import Iterator

import jax
from absl import logging

from speciarl_jax.experiment import host_verification
from speciarl_jax.experiment.run import Run
from speciarl_jax.training import train_data
from speciarl_jax.training.steps import Started, key_of


@contextlib.contextmanager
def first_step(run: Run, started: Started) -> Iterator[None]:
    """Compiles a program of the first step in a thread; waits for it at the end of the block.

    That is the whole step or, where a step has several programs, the rollout. JAX finds it again
    as the step is taken. What fails here fails there too, and is told there. Nothing is compiled
    ahead where several processes would have to agree on it, where batches hold features of the
    cache, and where a batch is split for a judge.
    """
    split = host_verification.is_host(run) and run.config.verifier.num_chunks > 1
    if jax.process_count() > 1 or run.vision_cache is not None or split:
        yield
        return
    thread = threading.Thread(target=_compile, args=(run, started), name="compile the first step")
    thread.start()
    try:
        yield
    finally:
        thread.join()


def _compile(run: Run, started: Started) -> None:
    try:
        batch = train_data.on_devices(run, train_data.training_batches(run), [])
        state, key = started.state, key_of(run, 1)
        if "step" in started.programs:
            step = started.programs["step"].lower(state, run.base, run.verifier, batch, key)
        else:
            step = started.programs["rollout"].lower(state.lora, run.base, batch, key)
        step.compile()
    except Exception as error:
        logging.info("the first step was not compiled ahead: %s", error)
