"""Judges the answers of an evaluation anew, by another verifier; nothing is sampled.

The new verdicts go to a folder of their own, which is then an evaluation folder like any other; the
answers and verdicts that were there stay as they are.
"""

import collections
import contextlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import ml_collections
from etils import epath

from speciarl_jax.data.sources import open_source
from speciarl_jax.evaluation import metrics, predictions, provenance, text_judge
from speciarl_jax.evaluation.predictions import UNVERIFIED, Part, Predictions
from speciarl_jax.evaluation.text_judge import Answered
from speciarl_jax.runtime import jsonl, renamed

# Fields of a line that are no property of the image.
_NOT_OF_ROW = (*Part._fields, "index", "responses", "categories", "probabilities")
_SHOWN = 3  # kinds of changes that a sentence names


class Plan(NamedTuple):
    """What is judged anew."""

    config: ml_collections.ConfigDict  # its weights of specificity
    sets: Mapping[str, ml_collections.ConfigDict]  # of `configs_of`
    folder: epath.Path  # receives the results


def make_plan(given: Any) -> Plan:
    """Reads what the flags of `evaluate` ask for; writes nothing.

    Without --rejudge_into the folder is named after the verifier.

    Raises:
      ValueError: flags do not fit together, or as for `configs_of`.
    """
    text_judge.refuse_several_processes("--rejudge")
    unfit = ("policies", "answers", "sets", "prompts", "best_of", "best", "step")
    if asked := [f"--{name}" for name in unfit if getattr(given, name) not in (None, 0, False, [])]:
        raise ValueError(
            f"--rejudge judges all answers of --workdir, and samples none; leave out {asked}"
        )
    workdir = epath.Path(given.workdir)
    sets = configs_of(workdir, given.config)
    config = given.config if given.config is not None else list(sets.values())[-1]
    metrics.configured_weights(config.evaluation.weights)  # refused before any work
    name = config.verifier.name
    judge = config.verifier.cascade.judge if name == "cascade" else ""
    usual = workdir / "_".join(filter(None, ("judged_by", name, judge)))
    folder = epath.Path(given.rejudge_into or usual)
    if folder.resolve() == workdir.resolve():
        raise ValueError("--rejudge_into must not be --workdir, whose verdicts stay as they are")
    return Plan(config, sets, folder)


def configs_of(
    workdir: epath.Path, given: ml_collections.ConfigDict | None
) -> dict[str, ml_collections.ConfigDict]:
    """Returns the configuration of each data set that was answered about, to judge with.

    Args:
      workdir: folder of `train` or `evaluate`.
      given: has the verifier, the weights of specificity, and the model and mesh if the verifier
        needs them. None: those that each data set was evaluated with.

    Raises:
      ValueError: the folder holds no answers, or does not say which images they are about.
    """
    kept = predictions.read_configs(workdir)
    trained = renamed.config(jsonl.read_object(workdir / "config.json", "start the run again"))
    if trained:
        # For training runs of old, which kept nothing else.
        kept = {trained["data"]["name"]: trained} | kept
    found = {}
    for data in dict.fromkeys(part.data for part in predictions.read(workdir)):
        if data not in kept:
            raise ValueError(
                f"{workdir / predictions.CONFIGS} lacks the data set {data!r}, so its labels are "
                "not known; evaluate once more with this version"
            )
        config = ml_collections.ConfigDict(kept[data])
        if given is not None:
            config = _with_images_of(given, config)
        found[data] = config
    if not found:
        raise ValueError(
            f"{workdir} holds no answers; give the --workdir of python -m speciarl_jax.train or "
            "speciarl_jax.evaluate"
        )
    return found


def _with_images_of(
    given: ml_collections.ConfigDict, kept: ml_collections.ConfigDict
) -> ml_collections.ConfigDict:
    changed = given.copy_and_resolve_references()
    with changed.unlocked():
        changed.data = kept.data
        for name in ("options", "sets", "seed"):
            changed.evaluation[name] = kept.evaluation[name]
    return changed


def _sources(config: ml_collections.ConfigDict) -> list[Any]:
    """Opens the data sets whose labels the verifier must know; decodes no image.

    A data set of its own has its options in `data`. Otherwise the images are those of a training
    run, whose verifier knows the labels of the training images, too.
    """
    options = config.evaluation.options
    evaluation = open_source(config, config.evaluation.seed, **options)
    return [open_source(config, config.seed), evaluation] if options else [evaluation]


def rejudge(
    workdir: epath.Path,
    store: Predictions,
    configs: Mapping[str, ml_collections.ConfigDict],
    *,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Judges all answers of a folder, except for those that were judged so already.

    Args:
      workdir: holds the answers.
      store: of another folder; receives the lines. Their provenance differs from that in `workdir`
        in the verifier and the labels, so that policies can be evaluated beside them.
      configs: of `configs_of`.
      overwrite: as for `Predictions.begin`.

    Returns:
      Data set -> its labels, as `Run.labels`.

    Raises:
      ValueError: the verifier does not fit, or the lines there have another provenance.
      host_verification.JudgeUnavailable: too many answers of a part have no verdict.
    """
    parts, made = predictions.read(workdir), predictions.read_provenance(workdir)
    labels = {}
    for data, config in configs.items():
        opened = text_judge.make(config, lambda config=config: _sources(config))
        with contextlib.closing(opened) as judge:
            labels[data] = judge.labels
            verdicts = provenance.of_verdicts(judge)
            for part, lines in parts.items():
                if part.data == data:
                    known = {**made.get(str(part), {}), **verdicts}
                    answered = [_answered(line) for line in lines]
                    text_judge.judge_part(judge, store, part, known, answered, overwrite=overwrite)
    return labels


def _answered(line: Mapping[str, Any]) -> Answered:
    row = {name: value for name, value in line.items() if name not in _NOT_OF_ROW}
    return Answered(line["index"], row, line["responses"])


def changes(before: Mapping[Part, Sequence[Any]], after: Mapping[Part, Sequence[Any]]) -> list[str]:
    """Writes a sentence about each part: how many verdicts are as before, and how others changed.

    Args:
      before: lines of each part as they were judged first.
      after: the same answers, judged anew.
    """
    said = []
    for part, lines in after.items():
        old = {line["index"]: line["categories"] for line in before.get(part, ())}
        pairs = collections.Counter(
            pair
            for line in lines
            if line["index"] in old
            for pair in zip(old[line["index"]], line["categories"], strict=True)
            if UNVERIFIED not in pair
        )
        if total := sum(pairs.values()):
            moved = [(pair, count) for pair, count in pairs.most_common() if len(set(pair)) > 1]
            same = 1 - sum(count for _, count in moved) / total
            most = ", ".join(f"{a} -> {b} ({count})" for (a, b), count in moved[:_SHOWN])
            most = most.replace("_", " ")
            often = f"; most often: {most}" if most else ""
            said.append(f"{part}: {same:.1%} of {total} verdicts are as before{often}.")
    return said
