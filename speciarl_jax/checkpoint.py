"""Orbax checkpoints: what changes while training, and where the data iterator stands."""

import logging as logging_lib
import pathlib
from typing import Any

import jax
import orbax.checkpoint as ocp
from absl import logging


def quieten_orbax() -> None:
    """Leaves Orbax's running commentary out of the log; its warnings stay."""

    def wanted(record: logging_lib.LogRecord) -> bool:
        return record.levelno >= logging_lib.WARNING or "orbax" not in record.pathname

    logging.get_absl_handler().addFilter(wanted)


class Checkpoints:
    """A folder of checkpoints, one a step.

    A checkpoint holds the train state (LoRA, optimizer, step, never the frozen base), the state of
    the data iterator and the facts a resumed run must agree with. It is written asynchronously and
    is complete or absent: Orbax renames it into place when all of it is on disk.
    """

    def __init__(
        self, folder: str | pathlib.Path, *, save_every: int, keep: int, create: bool = True
    ):
        """Opens or makes the folder.

        Args:
          folder: local path, or a URL that Orbax understands (gs://...).
          save_every: steps between two checkpoints.
          keep: how many of the latest stay.
          create: make a local folder that does not exist.

        Raises:
          ValueError: numbers below 1, no such folder, or its latest checkpoint lacks a part.
        """
        if save_every < 1 or keep < 1:
            raise ValueError(
                f"checkpoint.save_every is {save_every} and checkpoint.keep {keep}; both must be "
                "at least 1"
            )
        if not create and "://" not in str(folder) and not pathlib.Path(folder).is_dir():
            raise ValueError(f"{folder} holds no checkpoint: there is no such folder")
        self._manager = ocp.CheckpointManager(
            folder if "://" in str(folder) else pathlib.Path(folder).absolute(),
            options=ocp.CheckpointManagerOptions(
                save_interval_steps=save_every, max_to_keep=keep, create=create
            ),
        )
        latest = self._manager.latest_step()
        if latest is not None:
            found = self._manager.directory / str(latest)
            if not all((found / part).exists() for part in ("state", "iterator", "facts")):
                raise ValueError(
                    f"{found} is no whole checkpoint (a copy that was cut short?); delete it, and "
                    "the one before it is used"
                )

    def latest_step(self) -> int | None:
        """The newest complete checkpoint, or None."""
        return self._manager.latest_step()

    def due(self, step: int) -> bool:
        """Whether `save` would write at this step without being forced."""
        return self._manager.should_save(step)

    def save(
        self,
        step: int,
        state: Any,
        iterator_state: dict[str, Any],
        facts: dict[str, Any],
        *,
        force: bool = False,
    ) -> bool:
        """Writes a checkpoint if one is due at this step, or if `force` is set.

        Args:
          step: number of finished steps.
          state: pytree of arrays.
          iterator_state: JSON-able state of the data iterator.
          facts: JSON-able description of the run that `restore` compares.
          force: write it even though none is due.

        Returns:
          Whether a checkpoint was written.
        """
        if step == self.latest_step():
            return False
        return self._manager.save(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardSave(state),
                iterator=ocp.args.JsonSave(iterator_state),
                facts=ocp.args.JsonSave(facts),
            ),
            force=force,
        )

    def restore(
        self, state: Any, facts: dict[str, Any], step: int | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Reads a checkpoint into the shapes, dtypes and shardings of `state`.

        Args:
          state: pytree of arrays, or of abstract arrays with shardings, to be filled.
          facts: what this run believes; every key must agree with the checkpoint's.
          step: which one; the latest when None.

        Returns:
          The state and the state of the data iterator.

        Raises:
          ValueError: there is no such checkpoint, or its facts differ from this run's.
        """
        step = self.latest_step() if step is None else step
        if step is None or step not in self._manager.all_steps():
            raise ValueError(
                f"{self._manager.directory} holds no checkpoint"
                + ("" if step is None else f" of step {step}, only {self._manager.all_steps()}")
            )
        saved = self._manager.restore(step, args=ocp.args.Composite(facts=ocp.args.JsonRestore()))
        differing = {
            key: (saved.facts.get(key), value)
            for key, value in facts.items()
            if saved.facts.get(key) != value
        }
        if differing:
            lines = [f"  {key}: {was!r} -> {now!r}" for key, (was, now) in differing.items()]
            raise ValueError(
                f"the checkpoint of step {step} was made by another configuration "
                "(checkpoint -> now):\n"
                + "\n".join(lines)
                + "\nuse the old values, or another --workdir"
            )
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, state)
        restored = self._manager.restore(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardRestore(abstract), iterator=ocp.args.JsonRestore()
            ),
        )
        return restored.state, restored.iterator

    def wait(self) -> None:
        """Returns when everything saved so far is on disk."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits for what is being written and frees the threads."""
        self._manager.close()
