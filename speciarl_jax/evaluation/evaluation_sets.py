"""The data sets of `config.evaluation.sets`: configurations, images, and who asks about them."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import ml_collections
from absl import logging

from speciarl_jax.data import images
from speciarl_jax.data.sources import open_source
from speciarl_jax.evaluation.evaluator import Evaluator
from speciarl_jax.experiment.run import Run, evaluation_run, open_sources, with_data


def of_config(config: ml_collections.ConfigDict) -> dict[str, ml_collections.ConfigDict]:
    """Lists the sets of `config.evaluation.sets`, each as the configuration with its images.

    Raises:
      ValueError: a set lacks its name or its options.
    """
    found = {}
    for name, part in config.evaluation.sets.items():
        if set(part) != {"name", "options"}:
            raise ValueError(
                f"config.evaluation.sets.{name} has the keys {sorted(part)}; it needs 'name', a "
                "module of speciarl_jax/data, and 'options' of its Source"
            )
        found[name] = with_images(config, part["name"], part["options"])
    return found


def with_images(
    config: ml_collections.ConfigDict, name: str, options: Mapping[str, Any]
) -> ml_collections.ConfigDict:
    """Returns a configuration whose only images are those of this data set with these options."""
    changed = config.copy_and_resolve_references()
    with changed.unlocked():
        changed.data.name = name
        changed.data.options = ml_collections.ConfigDict(options)
        changed.evaluation.options = ml_collections.ConfigDict()
        changed.evaluation.sets = ml_collections.ConfigDict()
    return changed


def sources(config: ml_collections.ConfigDict, with_training: bool) -> tuple[Any, Any]:
    """Opens the images of training, or None instead of them, and of evaluation.

    With the training images, the verdicts are those that the training run got.
    """
    if with_training:
        return open_sources(config)
    source = open_source(config, config.evaluation.seed)
    if config.data.on_decode_error == "raise":
        images.check_files(source)
    images.check_first_row(source, config.data.name)
    return None, source


# Options that say where the images of a data set are.
_PLACES = ("path", "data_dir", "dataset", "parts", "common")


def num_trained_on(
    run: Run, name: str, options: Mapping[str, Any], source: Sequence[Mapping[str, Any]]
) -> int:
    """Counts the images of a data set that training learns from too; no image is read.

    Images of different data sets, or from different places, count as different.

    Args:
      name: module of speciarl_jax/data.
      options: of its Source.
      source: the data set.
    """
    ours = run.config.data
    if run.train_source is None or name != ours.name:
        return 0
    if any((options.get(place) or "") != (ours.options.get(place) or "") for place in _PLACES):
        return 0

    def ids(rows):
        return [images.describe(rows, i)["image_id"] for i in range(len(rows))]

    trained = set(ids(run.train_source))
    return sum(image_id in trained for image_id in ids(source))


def _warn_of_trained_images(
    run: Run, key: str, name: str, options: Mapping[str, Any], source: Sequence[Mapping[str, Any]]
) -> None:
    if count := num_trained_on(run, name, options, source):
        logging.warning(
            "%d of the %d images of config.%s are images of training, so its scores say little "
            "about others; choose another split, part or subset there",
            count,
            len(source),
            key,
        )


def evaluators(run: Run) -> dict[str, Evaluator]:
    """Opens what training evaluates (`config.evaluation.in_training`): name of a data set -> it.

    All share one program. Warns where images of training are among them.

    Raises:
      ValueError: `in_training` is unknown or asks for sets that are not there, or a set cannot be
        opened.
    """
    run = evaluation_run(run)
    config, own = run.config, Evaluator(run)
    where, sets = config.evaluation.in_training, of_config(config)
    if where == "own":
        options = {**config.data.options, **config.evaluation.options}
        told = "evaluation.options", config.data.name, options, run.eval_source
        _warn_of_trained_images(run, *told)
        return {config.data.name: own}
    if where != "sets" or not sets:
        raise ValueError(
            f"config.evaluation.in_training is {where!r} and config.evaluation.sets has "
            f"{len(sets)} sets; choose 'own', or 'sets' with at least one set"
        )
    found = {}
    for name, one in sets.items():
        opened = sources(one, with_training=False)
        told = f"evaluation.sets.{name}", one.data.name, one.data.options, opened[1]
        _warn_of_trained_images(run, *told)
        changed = with_data(dataclasses.replace(run, config=one), *opened)
        found[name] = Evaluator(changed, program=own.program)
    return found
