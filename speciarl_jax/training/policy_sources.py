"""Finds and loads the policies that evaluation and prediction are asked for.

    base                 the checkpoint of the configuration, without adapters
    trained              the adapters of the training run in --workdir, from its latest checkpoint,
                         or the best if it ends with that (config.train.stop_after)
    runs/other           adapters of another training run, likewise
    runs/other@20        adapters of its checkpoint of step 20
    exports/merged       a checkpoint folder in the Hugging Face layout
    emoji_tiny           a checkpoint that ships with the package
    exports/adapter      a PEFT folder, on the base that it names if that is on this disk (a folder,
                         or in the cache of the Hugging Face hub), otherwise on the configuration's

Results call a policy by the last part of its path, or by NAME with `NAME=` before the path. What
exists as a folder is that folder, whatever `=` and `@` are in its path.
"""

import contextlib
import dataclasses
import json
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import ml_collections
import numpy as np
from etils import epath
from flax import nnx

from speciarl_jax.experiment.run import Run
from speciarl_jax.models import load_policy, stored_weights
from speciarl_jax.models.checkpoints import peft
from speciarl_jax.rl import optimizer
from speciarl_jax.runtime import checkpoint, fingerprint, plugins, renamed
from speciarl_jax.training import state as state_lib
from speciarl_jax.training.validation import takes_best

BASE, TRAINED, BEST = "base", "trained", "best"


@dataclasses.dataclass(frozen=True)
class Policy:
    """A policy that is not loaded yet."""

    name: str  # in results
    model: Mapping[str, Any]  # keys of `config.model` that differ from the configuration's
    adapters: Callable[[Run], Any]  # loads the adapters, given a run with that model


def read_config(workdir: epath.Path) -> ml_collections.ConfigDict:
    """Reads the configuration of a training run. ValueError: the folder has none."""
    path = workdir / "config.json"
    if not path.is_file():
        raise ValueError(
            f"{path} is missing; give the --workdir of a run of python -m speciarl_jax.train"
        )
    return ml_collections.ConfigDict(renamed.config(json.loads(path.read_text())))


def config_from_file(path: epath.Path) -> ml_collections.ConfigDict:
    """Reads the configuration of a file, as `--config` does.

    Raises:
      ValueError: there is no such file, or it has no `get_config`.
    """
    return plugins.from_file(path, "get_config", "configuration")()


def named(specs: Sequence[str], workdir: epath.Path, step: int | str | None = None) -> list[Policy]:
    """Finds the policies that a command line names; loads none.

    Args:
      workdir: folder of `trained`.
      step: checkpoint of `trained`: a number, `BEST`, or None for the latest.

    Raises:
      ValueError: a path is none of these, or two policies have one name.
    """
    found = [_policy(spec, workdir, step) for spec in specs]
    names = [policy.name for policy in found]
    if len(set(names)) < len(names):
        raise ValueError(f"two policies have one name in {names}; write NAME=PATH")
    return found


def _policy(spec: str, workdir: epath.Path, step: int | str | None) -> Policy:
    if spec == BASE:
        return Policy(BASE, {}, lambda run: run.lora)
    if spec == TRAINED:
        name = TRAINED if step is None else BEST if step == BEST else f"step_{step}"
        return Policy(
            name, {}, lambda run: trained(run.mesh, run.lora, workdir, step, base_of(run))
        )
    return _of_folder(spec, *_parse(spec))


def of_path(path: str) -> Policy:
    """Finds the policy of a folder, or one that ships with the package; else as `named`.

    Raises:
      ValueError: it is no policy.
    """
    if load_policy.is_folder(path):
        return _of_folder(path, epath.Path(path).name, path, None)
    return _policy(path, epath.Path(), None)


def _parse(spec: str) -> tuple[str, str, int | None]:
    """Splits `NAME=PATH@STEP`, of which the path alone must be there.

    The first reading whose path exists counts: all of it is the path, then what is behind one of
    the `=`, each without a step before with one.

    Returns:
      Name in results, path, and step or None.

    Raises:
      ValueError: there is no such path, and the step or the name is none either.
    """
    starts = [0, *(i + 1 for i, character in enumerate(spec) if character == "=")]
    for start in starts:
        name, place = spec[: max(start - 1, 0)], spec[start:]
        if start and (not name or "/" in name):
            continue
        before, at, number = place.rpartition("@")
        if load_policy.is_folder(place):
            return name if start else epath.Path(place).name, place, None
        if at and number.isdecimal() and load_policy.is_folder(before):
            usual = f"{epath.Path(before).name}_step_{number}"
            return name if start else usual, before, int(number)
    name, equals, place = spec.rpartition("=")
    place, at, number = place.partition("@")
    if at and not number.isdecimal():
        raise ValueError(f"{spec!r}: behind @ stands the step of a checkpoint, a whole number")
    if equals and (not name or "/" in name):
        raise ValueError(f"{spec!r}: a policy's name must not be empty or hold a slash")
    return name or epath.Path(place).name, place, None


def _of_folder(spec: str, name: str, place: str, step: int | None) -> Policy:
    folder = epath.Path(place)
    if not name:
        raise ValueError(f"{spec!r}: a policy's name must not be empty or hold a slash")
    if (folder / "adapter_config.json").is_file():
        return _adapter(name, folder)
    if (folder / "checkpoints").is_dir():
        model = read_config(folder).model.to_dict()
        return Policy(
            name, model, lambda run: trained(run.mesh, run.lora, folder, step, base_of(run))
        )
    try:
        load_policy.model_folder(place)
    except ValueError as error:
        raise ValueError(
            f"{spec!r} is no policy: neither {BASE!r}, {TRAINED!r}, the workdir of a training run, "
            f"a folder of PEFT nor a checkpoint folder ({error})"
        ) from None
    return Policy(name, {"path": place}, lambda run: run.lora)


def _adapter(name: str, folder: epath.Path) -> Policy:
    adapter = peft.read_adapter_config(folder)
    model = {"lora_rank": adapter.rank, "lora_alpha": float(adapter.alpha)}
    model["lora_targets"] = adapter.targets
    if (base := load_policy.base_folder(adapter.base)) is not None:
        model["path"] = str(base)

    def adapters(run):
        adapter, lora = peft.load_adapter(folder, run.model_config)
        peft.warn_of_other_base(adapter, folder, base_of(run))
        return put_like(lora, run.lora)

    return Policy(name, model, adapters)


def base_of(run: Run) -> pathlib.Path:
    """Returns the checkpoint folder of a run's base."""
    return load_policy.model_folder(run.config.model.path)


def trained(
    mesh: jax.sharding.Mesh,
    lora: Any,
    workdir: epath.Path,
    step: int | str | None,
    base: pathlib.Path,
) -> Any:
    """Loads the adapters of a checkpoint of the training run in `workdir`.

    Args:
      mesh: to put them on.
      lora: adapters of the same model, or their shapes.
      workdir: of the training run.
      step: number of the checkpoint, `BEST` (`config.checkpoint.best_metric`), or None for the
        latest; of a run that ends with its best (`validation.takes_best`) for that.
      base: checkpoint folder that the adapters are meant for.

    Raises:
      ValueError: there is no such checkpoint, or the run that wrote it had other base weights.
    """
    try:
        return _restored(mesh, lora, workdir, step, base)
    except checkpoint.DamagedCheckpoint:
        if isinstance(step, int):
            raise
        # A run that is still going on deletes old checkpoints, even while they are read. Then
        # another is the latest now.
        return _restored(mesh, lora, workdir, step, base)


def _restored(
    mesh: jax.sharding.Mesh,
    lora: Any,
    workdir: epath.Path,
    step: int | str | None,
    base: pathlib.Path,
) -> Any:
    config = read_config(workdir)
    wanted, _ = state_lib.abstract_state(
        mesh,
        lora,
        optimizer.make(**config.optimizer),
        moving_reference=config.loss.reference_decay < 1,
        ahead=config.train.ahead,
    )
    with checkpoint.Checkpoints(
        workdir / "checkpoints", **config.checkpoint, create=False
    ) as checkpoints:
        chosen = checkpoints.best_step() if step == BEST else step
        if step is None and takes_best(config):
            with contextlib.suppress(ValueError):  # none can be the best: the latest is taken
                chosen = checkpoints.best_step()
        state, _ = checkpoints.restore(wanted, {}, chosen)
        known = checkpoints.fingerprint(chosen).get(fingerprint.BASE_WEIGHTS)
    if known is not None and known != stored_weights.fingerprint(base):
        raise ValueError(
            f"the adapters of {workdir} were trained on other weights than those of {base}, though "
            "of the same dimensions; give the base of that run, or put back its files"
        )
    return state.lora


def put_like(lora: nnx.State, fresh: nnx.State) -> nnx.State:
    """Puts numpy adapters where fresh ones of the same model lie."""
    return jax.tree.map(lambda new, old: jax.device_put(np.asarray(new), old.sharding), lora, fresh)
