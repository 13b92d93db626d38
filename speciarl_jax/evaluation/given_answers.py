"""Judges answers that another model gave about the images of data sets, as those of a policy."""

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any

import ml_collections
from absl import logging

from speciarl_jax.data.images import describe
from speciarl_jax.evaluation import image_index, predictions, provenance, text_judge
from speciarl_jax.evaluation.answer_file import File, Line, short
from speciarl_jax.evaluation.predictions import GREEDY, SAMPLES, Part
from speciarl_jax.evaluation.text_judge import Answered
from speciarl_jax.experiment.make_verifier import verifier_options
from speciarl_jax.verifiers import parsing

_SHOWN = 5  # images or lines that a message names


def match(
    files: Sequence[File], sources: Mapping[str, Any], *, partial: bool = False
) -> dict[tuple[str, str], list[Answered]]:
    """Finds the images that the lines of files are about.

    Args:
      sources: data set -> its images of evaluation.
      partial: go on where images have no line, or lines no image; this is logged.

    Returns:
      (name of a file, data set) -> its answers, in the order of the images. With `partial` a data
      set without any answer is left out.

    Raises:
      ValueError: an image has no line, a line no image, or an image several lines; names them.
    """
    found = {}
    rows = {
        data: [describe(source, i) for i in range(len(source))] for data, source in sources.items()
    }
    indices = {data: image_index.ImageIndex(rows[data]) for data in rows}
    for file in files:
        unknown = {line.number: line for line in file.lines}
        missing = {}
        for data, index in indices.items():
            lines = _lines_of_images(file, index)
            for line in lines.values():
                unknown.pop(line.number, None)
            answered = [
                Answered(i, row, lines[place].responses)
                for i, row in enumerate(rows[data])
                if (place := index.place(row)) in lines
            ]
            have = {one.index for one in answered}
            missing[data] = [index.name(row) for i, row in enumerate(rows[data]) if i not in have]
            if answered:
                found[file.name, data] = answered
        example = image_index.describe(next(iter(rows.values()))[0])
        _check(file, {data: len(rows[data]) for data in rows}, missing, unknown, example, partial)
    return found


def _lines_of_images(file: File, index: image_index.ImageIndex) -> dict[Any, Line]:
    """Returns the line of each image (`ImageIndex.place`)."""
    found: dict[Any, Line] = {}
    for line in file.lines:
        try:
            place = index.find(line.image_id, line.path)
        except ValueError as error:
            raise ValueError(f"{file.path}, line {line.number}: {error}") from None
        if place is None:
            continue
        if place in found:
            raise ValueError(
                f"{file.path}: lines {found[place].number} and {line.number} are about the same "
                f"image ({_called(line)}); keep one of them, or give several answers as a list"
            )
        found[place] = line
    return found


def _called(line: Line) -> str:
    return short(line.path if line.image_id is None else line.image_id)


def _check(
    file: File,
    sizes: Mapping[str, int],
    missing: Mapping[str, Sequence[str]],
    unknown: Mapping[int, Line],
    example: str,
    partial: bool,
) -> None:
    """Refuses, or logs, images without a line and lines without an image."""
    said = []
    for data, names in missing.items():
        if names:
            count = f"{len(names)} of the {sizes[data]} images of {data!r} have no line"
            said.append(f"{count} ({_listed(names)})")
    if unknown:
        names = [f"line {number}: {_called(line)}" for number, line in unknown.items()]
        said.append(
            f"{len(unknown)} of the {len(file.lines)} lines are about no image of "
            f"{', '.join(map(repr, sizes))} ({_listed(names)})"
        )
    if not said:
        return
    text = f"{file.path}: " + "; ".join(said)
    if len(unknown) == len(file.lines):
        raise ValueError(
            f"{text}. Name the images as the data set does, such as {example}, or evaluate the "
            "data set that the answers are about"
        )
    if not partial:
        raise ValueError(
            f"{text}. Mend these lines, or give --partial_answers to score only the images that "
            f"have one. An image of the data set is, for instance, {example}"
        )
    logging.warning("%s; only the images that have a line are scored", text)


def _listed(names: Sequence[str]) -> str:
    more = f", and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


def judge(
    files: Sequence[File],
    matched: Mapping[tuple[str, str], Sequence[Answered]],
    sets: Mapping[str, tuple[ml_collections.ConfigDict, Sequence[Any]]],
    prompt: str,
    store: predictions.Predictions,
    *,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Judges answers as those of policies, except for lines that are there already.

    Of N answers about an image the first stands for the greedy one.

    Args:
      matched: as `match` returns it.
      sets: data set -> its configuration, and its images of training (or None) and of evaluation.
      prompt: under whose name the answers stand in results, beside those of policies.
      store: receives the lines.
      overwrite: as for `Predictions.begin`.

    Returns:
      Data set -> its labels, as `Run.labels`.

    Raises:
      ValueError: the verifier does not fit, or the lines there have another provenance.
      host_verification.JudgeUnavailable: too many answers of a part have no verdict.
    """
    labels = {}
    for data, (config, sources) in sets.items():
        mine = [file for file in files if (file.name, data) in matched]
        if not mine:
            continue
        known_sources = [source for source in sources if source is not None]
        opened = text_judge.make(config, lambda known=known_sources: known)
        with contextlib.closing(opened) as verifier:
            labels[data] = verifier.labels
            for file in mine:
                answered = matched[file.name, data]
                _warn(file, answered, config)
                passes = [(GREEDY, 1), (SAMPLES, file.num_answers)]
                for decoding, count in passes if file.num_answers > 1 else passes[:1]:
                    part = Part(file.name, data, prompt, decoding)
                    known = provenance.of_given(
                        verifier, sources[-1], file.digest, num_rollouts=count
                    )
                    some = [one._replace(responses=one.responses[:count]) for one in answered]
                    text_judge.judge_part(verifier, store, part, known, some, overwrite=overwrite)
    return labels


def _warn(file: File, answered: Sequence[Answered], config: ml_collections.ConfigDict) -> None:
    """Logs how many responses the verifier cannot read because of its options."""
    options = verifier_options(config)
    said = [text for one in answered for text in one.responses]
    if options.get("tags") == "think":
        count = sum(
            parsing.extract(text) is not None and parsing.extract(text, tags="think") is None
            for text in said
        )
        if count:
            logging.warning(
                "%s: %d of %d responses have no %s...%s, which the verifier asks for "
                "(tags='think'), so they are unparsed; if thoughts are not wanted, set "
                "tags='answer', or give the names as 'answer'",
                *(file.path, count, len(said), parsing.THINK_OPEN, parsing.THINK_CLOSE),
            )
    most = options.get("max_response_bytes")
    count = sum(len(text.encode("utf-8", "surrogatepass")) > most for text in said) if most else 0
    if count:
        logging.warning(
            "%s: %d of %d responses have more than %d bytes (max_response_bytes of the verifier), "
            "so a verifier within programs cannot read them; raise it, and evaluate all policies "
            "with the same, or give the names as 'answer'",
            *(file.path, count, len(said), most),
        )
