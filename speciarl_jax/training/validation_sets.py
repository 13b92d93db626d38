"""Opens the sets of images that a run is validated on while it trains."""

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any

import ml_collections

from speciarl_jax.data import images, label_tree
from speciarl_jax.data.sources import open_source
from speciarl_jax.data.subset import Subset
from speciarl_jax.evaluation.evaluator import Evaluator
from speciarl_jax.experiment import host_verification
from speciarl_jax.experiment.run import Run, with_data


def names(config: ml_collections.ConfigDict) -> list[str]:
    """Returns the names of the sets (`config.evaluation.validation_sets`)."""
    return list(config.evaluation.validation_sets) or [config.data.name]


def check(config: ml_collections.ConfigDict) -> None:
    """Refuses names and values that are no sets (ValueError)."""
    for name, part in config.evaluation.validation_sets.items():
        if not name or "/" in name or name != name.strip():
            raise ValueError(
                f"config.evaluation.validation_sets has the name {name!r}; metrics are called "
                "validation/NAME/hm, so choose a name without slashes and without spaces around it"
            )
        if not isinstance(part, Mapping | ml_collections.ConfigDict):
            raise ValueError(
                f"config.evaluation.validation_sets.{name} is {part!r}; give the options of the "
                "data set that differ, {} for the evaluation images themselves"
            )


def evaluators(run: Run, own: Evaluator) -> dict[str, Evaluator]:
    """Opens the sets, and makes what asks and judges about each.

    All share the program of `own`. A verifier is made for each label tree, not for each set.

    Args:
      run: of the training; its training images, whose labels verifiers know, too.
      own: of the evaluation images.

    Raises:
      ValueError: a set cannot be opened, or a verifier cannot be made or does not answer.
    """
    config, found = run.config, {}
    judges = {_tree([run.train_source, run.eval_source]): own.run}
    for name in names(config):
        part = config.evaluation.validation_sets.get(name, {})
        source, is_other = _open(run, name, dict(part))
        training = None if is_other else run.train_source
        tree = _tree([source] if is_other else [training, source])
        if tree not in judges:
            judges[tree] = with_data(own.run, training, source)
            if host_verification.is_host(judges[tree]):
                judges[tree].verifier.check()
        chosen = Subset(source, config.evaluation.images, config.evaluation.seed)
        judged = dataclasses.replace(judges[tree], eval_source=chosen)
        found[name] = Evaluator(judged, program=own.program)
    return found


def _open(run: Run, name: str, part: Mapping[str, Any]) -> tuple[Any, bool]:
    """Opens all images of a set; also says whether they are of another data set."""
    config = run.config
    if not part:
        return run.eval_source, False
    is_other = part.keys() == {"name", "options"}
    if is_other:
        config = config.copy_and_resolve_references()
        with config.unlocked():
            config.data.name, config.data.options = part["name"], part["options"]
        source = open_source(config, config.evaluation.seed)
    else:
        options = {**config.evaluation.options, **part}
        source = open_source(config, config.evaluation.seed, **options)
    if config.data.on_decode_error == "raise":
        images.check_files(source)
    images.check_first_row(source, f"{config.data.name} (validation set {name!r})")
    return source, is_other


def _tree(sources: list[Any]) -> bytes | None:
    """Returns the label tree that verifiers are made with, as bytes to compare."""
    path = label_tree.path_of(sources)
    return None if path is None else pathlib.Path(path).read_bytes()
