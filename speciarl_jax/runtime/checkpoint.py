"""Orbax checkpoints: the train state and the position of the data, with checksums."""

import contextlib
import itertools
import json
import logging as logging_lib
from collections.abc import Iterator
from typing import Any

import jax
import orbax.checkpoint as ocp
from absl import logging
from etils import epath
from jax.experimental import multihost_utils
from orbax.checkpoint.checkpoint_managers import preservation_policy

from speciarl_jax.runtime import checksum, exit_codes, jsonl, storage_errors
from speciarl_jax.runtime import fingerprint as fingerprints
from speciarl_jax.runtime.messages import first_line

# Before the number of a checkpoint that was set aside.
DAMAGED = "damaged_"
# Warnings of Orbax about a file of metadata that this package does not write, and thus never
# misses, and about checkpoints that cannot be the best.
_EXPECTED = ("Metadata file does not exist", "Requested `tracked_metric`")
# What a checkpoint consists of; `facts` holds the fingerprint of the run.
_ITEMS = ("state", "iterator", "facts")


class DamagedCheckpoint(ValueError):
    """A checkpoint that cannot be read, or that holds other numbers than were written."""


def quieten_orbax() -> None:
    """Leaves Orbax's running commentary out of the log; its warnings stay, but for `_EXPECTED`."""

    def wanted(record: logging_lib.LogRecord) -> bool:
        if "orbax" not in record.pathname:
            return True
        expected = any(text in str(record.msg) for text in _EXPECTED)
        return record.levelno >= logging_lib.WARNING and not expected

    logging.get_absl_handler().addFilter(wanted)


class _Manager(ocp.CheckpointManager):
    """Leaves it to `preemption.Notice` alone to count steps for JAX's preemption service."""

    def reached_preemption(self, step: int) -> bool:
        return False


class Checkpoints:
    """Reads and writes a folder of checkpoints, one a step.

    A checkpoint holds the train state (LoRA, optimizer, step, never the frozen base), the state of
    the data iterator, the fingerprint that a resumed run must match, and checksums. It is written
    asynchronously and is complete or absent: Orbax renames it into place (in a bucket: marks it as
    complete) when all of it is written.

    A fingerprint is a JSON-able dictionary; only the keys that the caller gives are compared.
    """

    def __init__(
        self,
        folder: epath.PathLike,
        *,
        save_every: int,
        keep: int,
        keep_best: int = 0,
        best_metric: str = "",
        best_mode: str = "max",
        create: bool = True,
    ):
        """Opens or makes the folder.

        Args:
          folder: local path, or a URL (gs://...).
          save_every: steps between two checkpoints.
          best_metric: name of the metric that `save` receives, if `keep_best`.
          best_mode: "max" or "min".
          create: make a local folder that does not exist.

        Raises:
          ValueError: an unknown mode, or no such folder.
        """
        if best_mode not in ("max", "min"):
            raise ValueError(f"checkpoint.best_mode is {best_mode!r}; choose 'max' or 'min'")
        folder = epath.Path(folder)
        if not create and not folder.is_dir():
            raise ValueError(f"{folder} holds no checkpoint: there is no such folder")
        self._best_metric = best_metric if keep_best else ""

        def metric(metrics):
            return metrics[best_metric]

        kept = [preservation_policy.LatestN(keep)]
        if keep_best:
            kept.append(
                preservation_policy.BestN(
                    get_metric_fn=metric,
                    reverse=best_mode == "min",
                    n=keep_best,
                    keep_checkpoints_without_metrics=False,
                )
            )
        self._manager = _Manager(
            folder if "://" in str(folder) else folder.absolute(),
            options=ocp.CheckpointManagerOptions(
                save_interval_steps=save_every,
                preservation_policy=preservation_policy.AnyPreservationPolicy(kept),
                best_fn=metric if keep_best else None,
                best_mode=best_mode,
                create=create,
                # Otherwise its other threads wait minutes for a folder that cannot be made.
                async_options=ocp.options.AsyncOptions(create_directories_asynchronously=False),
            ),
        )

    def latest_step(self) -> int | None:
        """Returns the step of the newest complete checkpoint, or None."""
        return self._manager.latest_step()

    def best_step(self) -> int:
        """Returns the step of the checkpoint with the best value of the metric.

        Raises:
          ValueError: none has a value.
        """
        best = self._manager.best_step() if self._best_metric else None
        if best is None:
            raise ValueError(
                f"no checkpoint of {self._manager.directory} has a metric; train with "
                "config.checkpoint.keep_best above 0, or name a --step"
            )
        return best

    def add_metric(self, step: int, metric: float) -> None:
        """Records the value of `best_metric` with a whole checkpoint that was saved without one.

        All processes must call it together.
        """
        folder = self._manager.directory / str(step) / "metrics"
        if jax.process_index() == 0:
            folder.mkdir(exist_ok=True)
            jsonl.replace(folder / "metrics", json.dumps({self._best_metric: metric}))
        multihost_utils.sync_global_devices(f"metric of checkpoint {step}")
        self._manager.reload()

    def due(self, step: int) -> bool:
        """Returns whether `save` writes at this step without `force`."""
        return self._manager.should_save(step)

    def check_fingerprint(self, fingerprint: dict[str, Any], *, allow_change: bool = False) -> None:
        """Refuses a run that the newest checkpoint does not belong to, before it costs anything.

        Raises:
          ValueError: the fingerprints differ, and `allow_change` is not set.
        """
        step = self.latest_step()
        if step is None:
            return
        try:
            saved = self._read(step, facts=ocp.args.JsonRestore()).facts
        except DamagedCheckpoint:
            return  # `resume` sets it aside.
        fingerprints.check(saved, fingerprint, f"the checkpoint of step {step}", allow_change)

    def fingerprint(self, step: int | None = None) -> dict[str, Any]:
        """Reads the fingerprint in a checkpoint, the latest when None.

        Raises:
          DamagedCheckpoint: it cannot be read.
        """
        step = self.latest_step() if step is None else step
        return dict(self._read(step, facts=ocp.args.JsonRestore()).facts)

    def save(
        self,
        step: int,
        state: Any,
        iterator_state: dict[str, Any],
        fingerprint: dict[str, Any],
        *,
        metric: float | None = None,
        force: bool = False,
    ) -> bool:
        """Writes a checkpoint if one is due at this step or `force` is set; returns whether it did.

        Args:
          iterator_state: JSON-able state of the data iterator.
          metric: value of `best_metric`, if the best are kept.

        Raises:
          exit_codes.StorageError: this one, or the one before, cannot be written.
          jax.errors.JaxRuntimeError: of the devices, or another process went away.
        """
        if step == self.latest_step() or not (force or self.due(step)):
            return False
        known = self._best_metric and metric is not None
        digest = checksum.digest(state, iterator_state, fingerprint)
        with self._writing():
            return self._manager.save(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardSave(state),
                    iterator=ocp.args.JsonSave(iterator_state),
                    facts=ocp.args.JsonSave(fingerprint),
                    checksum=ocp.args.JsonSave(digest),
                ),
                metrics={self._best_metric: metric} if known else None,
                force=True,
            )

    def resume(
        self, state: Any, fingerprint: dict[str, Any], *, allow_change: bool = False
    ) -> tuple[int, Any, dict[str, Any]] | None:
        """Reads the newest checkpoint that is whole, for a run that goes on from it.

        One that is damaged is set aside, as `damaged_STEP` (`damaged_STEP_2` where there is one
        already), and the one before is used: the run takes the same steps again, to the same bits.
        That is logged as an error.

        Arguments and errors are those of `restore`.

        Returns:
          Its step, the state and the state of the data iterator; None if there is none.

        Raises:
          DamagedCheckpoint: there were checkpoints, and not one is whole.
        """
        while (step := self.latest_step()) is not None:
            try:
                return step, *self.restore(state, fingerprint, step, allow_change=allow_change)
            except DamagedCheckpoint as error:
                self._set_aside(step, error)
        folder = self._manager.directory
        if aside := sorted(path.name for path in folder.glob(f"{DAMAGED}*")):
            raise DamagedCheckpoint(
                f"{folder} holds no whole checkpoint, only {aside}, which were damaged and set "
                "aside; put back a copy of one under its number, or begin anew with another "
                "--workdir"
            )
        return None

    def restore(
        self,
        state: Any,
        fingerprint: dict[str, Any],
        step: int | None = None,
        *,
        allow_change: bool = False,
    ) -> tuple[Any, dict[str, Any]]:
        """Reads a checkpoint into the shapes, dtypes and shardings of `state`.

        Args:
          state: pytree of arrays, or of abstract arrays with shardings, to be filled.
          fingerprint: of this run; every key must agree with the checkpoint's.
          step: of the checkpoint; the latest when None.
          allow_change: log the keys that differ, and go on.

        Returns:
          The state and the state of the data iterator.

        Raises:
          DamagedCheckpoint: it is not whole.
          exit_codes.RestartNeeded, OSError: it is out of reach and may be whole
            (`storage_errors.check`).
          ValueError: there is no such checkpoint, its fingerprint differs from this run's, or its
            arrays have other shapes.
        """
        folder, steps = self._manager.directory, self._manager.all_steps()
        step = self.latest_step() if step is None else step
        if step is None or step not in steps:
            raise ValueError(
                f"{folder} holds no checkpoint"
                + ("" if step is None else f" of step {step}, only {steps}")
            )
        found = folder / str(step)
        if missing := [item for item in _ITEMS if not (found / item).exists()]:
            raise DamagedCheckpoint(
                f"{found} is no whole checkpoint: it lacks {missing} (a copy that was cut short?)"
            )
        texts = self._read(step, iterator=ocp.args.JsonRestore(), facts=ocp.args.JsonRestore())
        damaged = DamagedCheckpoint(f"{found} holds other numbers than were written")
        wanted = None
        if (found / "checksum").exists():
            wanted = self._read(step, checksum=ocp.args.JsonRestore()).checksum
            # Checked first, or a flipped bit would be taken for another configuration.
            if wanted["json"] != checksum.text_digest(texts.iterator, texts.facts):
                raise damaged
        fingerprints.check(texts.facts, fingerprint, f"the checkpoint of step {step}", allow_change)
        self._check_shapes(step, state)
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, state)
        restored = self._read(step, state=ocp.args.StandardRestore(abstract)).state
        if wanted is not None and wanted != checksum.digest(restored, texts.iterator, texts.facts):
            raise damaged
        return restored, texts.iterator

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, jax.errors.JaxRuntimeError) and jax.process_count() > 1:
            return  # Another process is gone, and the writing would wait for it; the exit ends it.
        self.close()

    def wait(self) -> None:
        """Returns when everything saved so far is on disk.

        Raises:
          exit_codes.StorageError: it cannot be written.
        """
        with self._writing():
            self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits for what is being written and frees the threads; raises as `wait` does."""
        with self._writing():
            self._manager.close()

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """Raises a StorageError in place of what Orbax says when it cannot write."""
        try:
            yield
        except (exit_codes.StorageError, jax.errors.JaxRuntimeError):
            raise  # No disk says the latter.
        except Exception as error:
            folder = self._manager.directory
            whole = sorted(int(path.name) for path in folder.iterdir() if path.name.isdigit())
            raise exit_codes.StorageError(
                f"a checkpoint could not be written to {folder} ({type(error).__name__}: "
                f"{first_line(error)}). "
                f"Whole ones there: {whole}. Free space, or make the folder writable, and start "
                "the same command again"
            ) from error

    def _read(self, step: int, **args: Any) -> Any:
        try:
            return self._manager.restore(step, args=ocp.args.Composite(**args))
        except (jax.errors.JaxRuntimeError, MemoryError):
            raise  # No memory, or another process went away: the checkpoint is not to blame.
        except Exception as error:
            found = self._manager.directory / str(step)
            storage_errors.check(found, error)
            raise DamagedCheckpoint(
                f"{found} cannot be read ({type(error).__name__}: {first_line(error)})"
            ) from error

    def _check_shapes(self, step: int, state: Any) -> None:
        """Refuses a sound checkpoint of something else, which is not a damaged one."""
        try:
            with ocp.StandardCheckpointer() as reader:
                saved = reader.metadata(self._manager.directory / str(step) / "state")
            saved = saved.item_metadata.tree
        except Exception:
            return  # Damaged; reading it says how.
        before, now = (
            {
                (jax.tree_util.keystr(path, simple=True, separator="/"), tuple(leaf.shape))
                for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
                if hasattr(leaf, "shape")
            }
            for tree in (saved, state)
        )
        if before != now:
            raise ValueError(
                f"the arrays of the checkpoint of step {step} are not this run's; they differ in "
                f"{sorted(before ^ now)[:8]}"
            )

    def _set_aside(self, step: int, error: DamagedCheckpoint) -> None:
        """Gives a damaged checkpoint another name.

        Raises:
          exit_codes.RestartNeeded: in a run of several processes, for they may not all have met the
            damage; all start again, and find it set aside.
        """
        folder = self._manager.directory
        target = _free_name(folder, step)
        logging.error(
            "DAMAGED CHECKPOINT, set aside as %s: %s. The run goes on from the one before.",
            target,
            error,
        )
        with contextlib.suppress(FileNotFoundError, FileExistsError):  # another process was faster
            (folder / str(step)).rename(target)
        if jax.process_count() > 1:
            raise exit_codes.RestartNeeded(
                f"checkpoint {step} was damaged and is set aside"
            ) from error
        self._manager.reload()


def _free_name(folder: epath.Path, step: int) -> epath.Path:
    """Returns where a damaged checkpoint of a step goes; it may not be the first."""
    endings = itertools.chain([""], (f"_{number}" for number in itertools.count(2)))
    targets = (folder / f"{DAMAGED}{step}{ending}" for ending in endings)
    return next(target for target in targets if not target.exists())
