"""A language model on the devices as the judge, where its vocabulary is not the policy's."""

import concurrent.futures
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from speciarl_jax.verifiers import parsing, prefilter
from speciarl_jax.verifiers.base import HostVerifier, Verdicts
from speciarl_jax.verifiers.category import Category
from speciarl_jax.verifiers.judge.verdict_logprobs import VERDICTS, Scorer, decide, encode

# Stated verdict or `ASK`, label, tokens of the answer.
Row = tuple[int, int, tuple[int, ...]]


class ReencodingJudge(HostVerifier):
    """The judge where the vocabularies differ: answers are encoded anew on the host.

    Equal pairs of a call are judged once. Programs are launched by the caller's thread, so that the
    devices get them and the policy's in one order; a thread waits for their results. In a run of
    several processes each has a judge of its own and judges its own rows.

    Attributes:
      scorer: the model and its prompt.
    """

    def __init__(
        self,
        scorer: Scorer,
        names: Sequence[str],
        tokenizer: Any,
        *,
        labels: Mapping[bytes, int],
        max_words: int,
        max_answer_bytes: int,
        max_answer_tokens: int,
        judge_batch_size: int,
        min_probability: float,
        tags: str,
    ):
        """Compiles nothing yet; one program of `judge_batch_size` rows serves all calls."""
        prefilter.check_limits(names, max_words=max_words, max_answer_bytes=max_answer_bytes)
        self.scorer, self._names, self._tokenizer = scorer, list(names), tokenizer
        self._limits = {"max_words": max_words, "max_answer_bytes": max_answer_bytes}
        self._labels = labels
        self._size, self._rows = max_answer_tokens, judge_batch_size
        self._tags = tags

        def program(scorer, stated_R, label_R, answer_RA, length_R):
            logp_RK = scorer.logp_of_pairs(label_R, answer_RA, length_R)
            return decide(stated_R, logp_RK, min_probability)

        self._program = jax.jit(program)
        self._thread = concurrent.futures.ThreadPoolExecutor(1, "flax_judge")

    def submit(
        self, responses: Sequence[Sequence[str]], label_index: Sequence[int]
    ) -> concurrent.futures.Future[Verdicts]:
        """See `HostVerifier`."""
        started = self._start(responses, label_index)
        return self._thread.submit(lambda: self._finish(*started)[0])

    def judge(
        self, responses: Sequence[Sequence[str]], label_index: Sequence[int]
    ) -> tuple[Verdicts, np.ndarray]:
        """Verdicts on N responses about each of B images, and probabilities [B, N, K]."""
        return self._finish(*self._start(responses, label_index))

    def errors(self) -> str:
        """See `HostVerifier`."""
        return ""

    def close(self) -> None:
        """See `HostVerifier`."""
        self._thread.shutdown()

    def _look(self, response: str, label: int) -> Row:
        content = parsing.extract(response, tags=self._tags)
        stated = prefilter.screen(content, self._names[label], labels=self._labels, **self._limits)
        if stated is not None:
            return int(stated), label, ()
        ids = encode(self._tokenizer, parsing.normalize(content))
        if len(ids) > self._size:
            return int(Category.WRONG), label, ()
        return prefilter.ASK, label, tuple(ids)

    def _start(
        self, responses: Sequence[Sequence[str]], label_index: Sequence[int]
    ) -> tuple[tuple[int, int], list[Row], list[tuple[Sequence[Row], Any]]]:
        """Shape (B, N), what each response comes down to, and the programs that judge that."""
        rows = [
            self._look(text, int(label))
            for group, label in zip(responses, label_index, strict=True)
            for text in group
        ]
        different, launched = sorted(set(rows)), []
        for first in range(0, len(different), self._rows):
            part = different[first : first + self._rows]
            stated = np.full(self._rows, int(Category.UNPARSED), np.int32)
            label, length = np.zeros_like(stated), np.zeros_like(stated)
            tokens = np.zeros((self._rows, self._size), np.int32)
            for i, (verdict, index, ids) in enumerate(part):
                stated[i], label[i], length[i] = verdict, index, len(ids)
                tokens[i, : len(ids)] = ids
            out = self._program(self.scorer, stated, label, tokens, length)
            launched.append((part, out))
        return (len(responses), len(responses[0]) if len(responses) else 0), rows, launched

    def _finish(self, shape, rows, launched) -> tuple[Verdicts, np.ndarray]:
        """Waits for the programs; see `judge`."""
        found = {}
        for part, out in launched:
            found |= zip(part, zip(*map(np.asarray, out), strict=True), strict=False)
        category, valid, probability = ([found[row][i] for row in rows] for i in range(3))
        probability_BNK = np.array(probability, np.float32).reshape(*shape, len(VERDICTS))
        asked_BN = np.array([row[0] == prefilter.ASK for row in rows], bool).reshape(shape)
        verdicts = Verdicts(
            category_BN=np.array(category, np.int32).reshape(shape),
            valid_BN=np.array(valid, bool).reshape(shape),
            cached_BN=np.zeros(shape, bool),
            seconds_BN=np.full(shape, np.nan, np.float32),
            probability_BN=np.where(asked_BN, probability_BNK.max(axis=-1), np.nan),
        )
        return verdicts, probability_BNK
