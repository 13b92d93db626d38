"""Weights & Biases: `pip install wandb`."""

import functools
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from absl import logging

from speciarl_jax.runtime.messages import first_line
from speciarl_jax.runtime.metric_writer import Writer
from speciarl_jax.training.writers import run_config
from speciarl_jax.training.writers.sample import COLUMNS, Sample
from speciarl_jax.training.writers.target import Target
from speciarl_jax.training.writers.tracker import TrackerWriter

_NAME = "wandb"
_MODES = ("online", "offline")
_PATIENCE = 60.0  # seconds that each part of the start of a run may take
# Seconds between what W&B's own process writes to disk. It ends with this one, and then loses the
# rest. Its default is 15; versions that lack the setting may lose more than is noted here.
_FLUSH = {"x_transaction_log_flush_interval": 0.5}


def check(target: Target) -> None:
    """Refuses what cannot work (ValueError): no package, no key, no folder."""
    mode = target.config.logging.wandb_mode
    if mode not in _MODES:
        raise ValueError(f"config.logging.wandb_mode is {mode!r}; choose one of {_MODES}")
    try:
        import wandb
    except ImportError as error:
        raise ValueError(
            "config.logging.writers names 'wandb', which cannot be imported "
            f"({first_line(error)}); pip install wandb, or take it out"
        ) from None
    if target.in_bucket and not target.config.logging.dir:
        raise ValueError(
            f"W&B keeps files while it uploads them, and {target.workdir} is no folder of this "
            "machine; set config.logging.dir to one"
        )
    if mode == "online":
        try:
            known = wandb.login(prompt=False, verify=False)
        except wandb.Error:
            known = False
        if not known:
            raise ValueError(
                "config.logging.writers names 'wandb', and there is no key for it; run "
                "`wandb login`, set WANDB_API_KEY, or set config.logging.wandb_mode to 'offline'"
            )


def create(target: Target) -> Writer:
    """Starts the run, or goes on with the one that the workdir knows."""
    return TrackerWriter(_NAME, target, WandbRun)


class WandbRun:
    """A run of W&B. Its own step is the place in the order; "step" is that of training.

    W&B drops without an error what comes at a place that it has passed already.
    """

    delay = 4 * _FLUSH["x_transaction_log_flush_interval"]

    def __init__(self, target: Target, run_id: str, reached: int):
        """Starts or resumes the run; takes as long as the network does.

        Args:
          run_id: of the run.
          reached: place of the first row that earlier processes have not handed over.
        """
        options = target.config.logging
        online = options.wandb_mode == "online"
        folder = pathlib.Path(options.dir or str(target.workdir)).absolute()
        folder.mkdir(parents=True, exist_ok=True)
        if not online:
            # Where the images of tables wait for `wandb sync`; W&B's default is the home folder.
            os.environ.setdefault("WANDB_DATA_DIR", str(folder / _NAME / "data"))
        import wandb

        self._run = wandb.init(
            project=options.project,
            name=target.name,
            id=run_id,
            dir=str(folder),
            mode=options.wandb_mode,
            resume="allow" if online else None,
            reinit="create_new",
            config=run_config.public(target.config),
            # The metadata have the command line, which may hold a password.
            settings=wandb.Settings(
                console="off",
                quiet=True,
                x_disable_meta=True,
                disable_git=True,
                save_code=False,
                init_timeout=_PATIENCE,
                x_service_wait=_PATIENCE,
                **(_FLUSH if _FLUSH.keys() <= wandb.Settings.model_fields.keys() else {}),
            ),
        )
        self._run.define_metric("*", step_metric="step")
        # The service knows best what has arrived; files only grow.
        self.first = self._run.starting_step if online else reached
        logging.info("W&B: %s", self._run.url if online else f"wandb sync {self._run.dir}/..")
        self._table, self._image = functools.partial(wandb.Table, list(COLUMNS)), wandb.Image

    def log(self, place: int, step: int, values: Mapping[str, float]) -> None:
        self._log(place, {"step": step, **values})

    def log_samples(self, place: int, step: int, samples: Sequence[Sample]) -> None:
        rows = []
        for sample in samples:
            image = None if sample.image is None else self._image(sample.image)
            rows += sample.rows(image)
        self._log(place, {"step": step, "rollouts": self._table(rows)})

    def finish(self) -> None:
        self._run.finish()

    def _log(self, place: int, values: dict[str, Any]) -> None:
        self._run.log(values, step=place, commit=True)
