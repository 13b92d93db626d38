"""Judges answers that are text already, without the policy that gave them.

The verdicts are those that the verifier gives in an evaluation of a policy. A label tree decides on
the host, and a judge behind a server is sent the text; neither needs a policy. Any other verifier
is told the bytes of the policy's tokens, so its tokenizer encodes the text. Weights are loaded only
if the verifier asks for them.
"""

import concurrent.futures
import dataclasses
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import ml_collections
import numpy as np
from tqdm import tqdm

from speciarl_jax.data import label_tree
from speciarl_jax.data import tokenizer as tokenizer_lib
from speciarl_jax.evaluation import evaluator, predictions
from speciarl_jax.experiment import host_verification, make_verifier
from speciarl_jax.models import load_policy
from speciarl_jax.models.checkpoints import hf_checkpoint
from speciarl_jax.runtime import sharding
from speciarl_jax.verifiers.base import HostVerifier, InGraphVerdicts, Verdicts
from speciarl_jax.verifiers.category import Category
from speciarl_jax.verifiers.taxonomy import Taxonomy, TaxonomyVerifier

# Verifiers that read text; their `create` needs the tokens of no policy.
_READ_TEXT = ("taxonomy", "http_judge")
# Images whose answers are judged between two writings, and answers in a call of a program.
_IMAGES, _ANSWERS = 256, 64
_LONE_SURROGATE = re.compile("[\ud800-\udfff]")


@dataclasses.dataclass(frozen=True)
class TextJudge:
    """A verifier of text. Stands for a `Run` where only verdicts matter.

    Attributes:
      config: whose verifier this is.
      labels: as `Run.labels`.
      verifier: as `Run.verifier`; it is on the host or in programs.
      on_text: the same on the host in any case.
    """

    config: ml_collections.ConfigDict
    labels: Any
    verifier: Any
    on_text: HostVerifier

    def close(self) -> None:
        """Frees the verifier's threads, connections and files."""
        self.on_text.close()


def refuse_several_processes(flag: str) -> None:
    """Refuses to judge text in a program of several processes (ValueError)."""
    if jax.process_count() > 1:
        raise ValueError(
            f"{flag} judges in one process, and there are {jax.process_count()}; evaluate the "
            f"policies without {flag}, then start a command with {flag} in one process"
        )


def make(config: ml_collections.ConfigDict, sources: Callable[[], Sequence[Any]]) -> TextJudge:
    """Builds the verifier of a configuration.

    Args:
      config: its `verifier`; its `model` and `mesh`, if the verifier reads tokens.
      sources: returns the data sets whose labels the verifier must know. It is called only if the
        verifier has no label tree of its own.

    Raises:
      ValueError: an option of the verifier, its label tree, or the policy's folder does not fit.
    """
    name = config.verifier.name
    options = make_verifier.verifier_options(config)
    tree = None if options.get("path") else label_tree.path_of(sources())
    if _reads_text(config):
        # One token for each byte, so no policy is needed.
        tokenizer, vocabulary = Bytes(), 256
        mesh = sharding.make_mesh(data=1, fsdp=1, tensor=1, devices=jax.local_devices()[:1])
    else:
        folder = load_policy.model_folder(config.model.path)
        tokenizer = tokenizer_lib.load(folder)
        vocabulary = hf_checkpoint.read_config(folder).text.vocab_size
        mesh = sharding.make_mesh(**config.mesh)
    labels, verifier = make_verifier.make(
        config, name, options, tree, tokenizer, vocabulary, mesh, None
    )
    on_text = verifier
    if isinstance(verifier, TaxonomyVerifier) and isinstance(labels, Taxonomy):
        on_text = TreeOnHost(
            labels,
            tags=options["tags"],
            max_response_bytes=options["max_response_bytes"],
        )
    elif not isinstance(verifier, HostVerifier):
        on_text = Encoding(verifier, tokenizer)
    else:
        verifier.check()
    return TextJudge(config, labels, verifier, on_text)


def _reads_text(config: ml_collections.ConfigDict) -> bool:
    name = config.verifier.name
    if name == "cascade":
        return config.verifier.cascade.judge in ("", *_READ_TEXT)
    return name in _READ_TEXT


class Bytes:
    """A tokenizer for `tokenizer.token_bytes`: one token for each byte, and none else."""

    all_special_ids: tuple[int, ...] = ()

    def get_vocab(self) -> dict[str, int]:
        """Returns the tokens, as byte-level BPE spells bytes, and their ids."""
        from transformers.convert_slow_tokenizer import bytes_to_unicode

        return {character: byte for byte, character in bytes_to_unicode().items()}

    def get_added_vocab(self) -> dict[str, int]:
        """Returns no token."""
        return {}


class _Computed(HostVerifier):
    """A verifier of this process, which neither fails nor waits."""

    def errors(self) -> str:
        """See `HostVerifier`."""
        return ""

    def close(self) -> None:
        """See `HostVerifier`."""


class TreeOnHost(_Computed):
    """A label tree on the host, with the verdicts of `TaxonomyVerifier`."""

    def __init__(self, tree: Taxonomy, *, tags: str, max_response_bytes: int | None):
        """Takes the tree; the options are those of `TaxonomyVerifier`."""
        self._tree, self._tags, self._most = tree, tags, max_response_bytes

    def submit(
        self, responses: Sequence[Sequence[str]], label_index: Sequence[int]
    ) -> concurrent.futures.Future[Verdicts]:
        """See `HostVerifier`."""
        category_BN = [
            [self._category(text, self._tree.leaf_ids[label]) for text in group]
            for group, label in zip(responses, label_index, strict=True)
        ]
        return _done(np.array(category_BN, np.int32))

    def _category(self, text: str, leaf_id: str) -> Category:
        if self._most is not None and len(text.encode("utf-8", "surrogatepass")) > self._most:
            return Category.UNPARSED
        return self._tree.response_category(text, leaf_id, tags=self._tags)


class Encoding(_Computed):
    """An in-graph verifier that is given text; a tokenizer encodes it."""

    def __init__(self, verifier: Any, tokenizer: Any):
        """Compiles nothing yet: one program for each width.

        Args:
          verifier: in-graph.
          tokenizer: of the policy whose tokens it reads.
        """
        self._verifier, self._tokenizer = verifier, tokenizer
        self._program = jax.jit(_verify)

    def submit(
        self, responses: Sequence[Sequence[str]], label_index: Sequence[int]
    ) -> concurrent.futures.Future[Verdicts]:
        """See `HostVerifier`. Equal answers about one label are judged once."""
        pairs_BN = [
            [(text, int(label)) for text in group]
            for group, label in zip(responses, label_index, strict=True)
        ]
        ids = {pair: self._encode(pair[0]) for group in pairs_BN for pair in group}
        # Those of about one length go into one call, so that little is padded.
        different, found = sorted(ids, key=lambda pair: len(ids[pair])), {}
        for first in range(0, len(different), _ANSWERS):
            part = different[first : first + _ANSWERS]
            judged = self._call([ids[pair] for pair in part], [label for _, label in part])
            found |= zip(part, zip(*judged, strict=True), strict=True)
        verdicts = [[found[pair] for pair in group] for group in pairs_BN]
        category_BN, valid_BN, probability_BN = np.moveaxis(np.array(verdicts, np.float64), -1, 0)
        return _done(category_BN.astype(np.int32), valid_BN > 0, probability_BN)

    def _encode(self, text: str) -> list[int]:
        # No tokenizer takes a lone surrogate. The replacement character is in no name, either.
        text = _LONE_SURROGATE.sub("\ufffd", text)
        # What looks like a special token is text, as no policy may say one.
        return self._tokenizer(text, add_special_tokens=False, split_special_tokens=True)[
            "input_ids"
        ]

    def _call(self, ids: Sequence[Sequence[int]], labels: Sequence[int]) -> list[np.ndarray]:
        """Judges at most `_ANSWERS` answers: category, validity, probability."""
        width = max(8, 2 ** (len(ids[-1]) - 1).bit_length()) if ids[-1] else 8
        tokens = np.zeros((_ANSWERS, 1, width), np.int32)
        mask, index = np.zeros(tokens.shape, bool), np.zeros(_ANSWERS, np.int32)
        index[: len(labels)] = labels
        for i, one in enumerate(ids):
            tokens[i, 0, : len(one)], mask[i, 0, : len(one)] = one, True
        found = self._program(self._verifier, tokens, mask, index)
        probability = found.probability_BN
        if probability is None:
            probability = np.full(found.category_BN.shape, np.nan)
        kept = found.category_BN, found.valid_BN, probability
        return [np.asarray(x)[: len(ids), 0] for x in kept]


def _verify(verifier, tokens_BNT, mask_BNT, label_index_B) -> InGraphVerdicts:
    method = getattr(verifier, "verify_in_detail", verifier.verify)
    return InGraphVerdicts(*method(tokens_BNT, mask_BNT, label_index_B))


def _done(
    category_BN: np.ndarray,
    valid_BN: np.ndarray | None = None,
    probability_BN: np.ndarray | None = None,
) -> concurrent.futures.Future[Verdicts]:
    """Returns verdicts that exist already, valid unless something else is said, as a future."""
    shape = category_BN.shape
    done: concurrent.futures.Future[Verdicts] = concurrent.futures.Future()
    done.set_result(
        Verdicts(
            category_BN=category_BN,
            valid_BN=np.ones(shape, bool) if valid_BN is None else valid_BN,
            cached_BN=np.zeros(shape, bool),
            seconds_BN=np.full(shape, np.nan, np.float32),
            probability_BN=probability_BN,
        )
    )
    return done


class Answered(NamedTuple):
    """Answers about an image of a data set."""

    index: int  # of the image
    row: Mapping[str, Any]  # of the image, without the pixels
    responses: list[str]  # N whole responses, tags included


def judge_part(
    judge: TextJudge,
    store: predictions.Predictions,
    part: predictions.Part,
    known: Mapping[str, Any],
    answered: Sequence[Answered],
    *,
    overwrite: bool = False,
) -> None:
    """Writes answers and their verdicts after the lines of the part that are there.

    Answers without a verdict from an earlier run are judged again.

    Args:
      known: provenance of the answers and verdicts.
      answered: in the order of the images.
      overwrite: as for `Predictions.begin`.

    Raises:
      ValueError: the lines there have another provenance, or the verifier lacks a label.
      host_verification.JudgeUnavailable: too many answers have no verdict; the next call
        asks for them again.
    """
    labels = {one.row["label_id"]: judge.labels.leaf_index(one.row["label_id"]) for one in answered}
    start = store.begin(part, known, overwrite=overwrite)
    store.keep_config(part.data, json.loads(judge.config.to_json()))
    on_host = host_verification.is_host(judge)
    if on_host:
        evaluator.judge_again(judge, store, part)
    rest = [one for one in answered if one.index >= start]
    try:
        with tqdm(total=len(rest), desc=", ".join(part), unit="images") as bar:
            for first in range(0, len(rest), _IMAGES):
                chunk = rest[first : first + _IMAGES]
                responses = [one.responses for one in chunk]
                asked = judge.on_text.submit(responses, [labels[x.row["label_id"]] for x in chunk])
                store.append(part, _lines(chunk, asked.result()))
                bar.update(len(chunk))
    finally:
        store.flush()
    if on_host:
        said = [name for line in store.lines(part) for name in line["categories"]]
        valid = np.array([name != predictions.UNVERIFIED for name in said], bool)
        host_verification.check_verified(judge, str(part), valid)


def _lines(chunk: Sequence[Answered], found: Verdicts) -> Iterator[dict[str, Any]]:
    probability_BN = found.probability_BN
    if probability_BN is None:
        probability_BN = np.full(found.category_BN.shape, np.nan)
    indices, rows, responses = zip(*chunk, strict=True)
    judged = evaluator.Judged(rows, responses, found.category_BN, found.valid_BN, probability_BN)
    return evaluator.lines_of(judged, indices)
