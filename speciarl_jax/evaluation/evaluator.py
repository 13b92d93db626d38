"""Answers and verdicts of a policy about the evaluation images."""

import collections
import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from tqdm import tqdm

from speciarl_jax.data import pipeline
from speciarl_jax.data.images import describe
from speciarl_jax.evaluation import metrics, predictions
from speciarl_jax.experiment import host_verification
from speciarl_jax.experiment.run import Run
from speciarl_jax.rollout import sample_and_verify
from speciarl_jax.runtime import sharding

# Batches that are sampled while a host verifier judges the one before them.
_AHEAD = 2


@dataclasses.dataclass(frozen=True)
class Judged:
    """Answers of a policy about the evaluation images.

    Attributes:
      rows: the images' own rows, without the pixels.
      responses: N texts an image.
      category_BN: int32 `Category`.
      valid_BN: bool, a verdict exists; only a judge leaves answers without one.
      probability_BN: float, of the verdict; NaN where no judge was asked, or none has any.
    """

    rows: list[Mapping[str, Any]]
    responses: list[list[str]]
    category_BN: np.ndarray
    valid_BN: np.ndarray
    probability_BN: np.ndarray

    @property
    def verified(self) -> np.ndarray:
        """Categories [B', N] of the images all of whose answers have a verdict."""
        return self.category_BN[self.valid_BN.all(axis=1)]


class Evaluator:
    """Samples and verifies answers about the evaluation images; compiled once.

    Attributes:
      run: policy, verifier, data.
      source: the images.
    """

    def __init__(
        self,
        run: Run,
        *,
        num_rollouts: int = 1,
        batch_size: int | None = None,
        source: Any = None,
    ):
        """Lists the images.

        Args:
          run: policy, verifier, data.
          num_rollouts: N answers an image.
          batch_size: images a call; `config.evaluation.batch_size` when None.
          source: the images; those of `config.data` and `config.evaluation.options` when None.

        Raises:
          ValueError: unknown options, or a batch that the mesh cannot cut.
        """
        config = run.config
        self.run = run
        self._batch_size = config.evaluation.batch_size if batch_size is None else batch_size
        key = "config.evaluation.batch_size" if batch_size is None else "batch_size of an Evaluator"
        sharding.check_batch(run.mesh, key, self._batch_size)
        if source is None:
            source = run.eval_source
        self.source = source
        sampler = run.sampler(num_rollouts, config.rollout.max_tokens)

        def program(lora, base, verifier, batch, key, temperature, top_p):
            _, rollout = sampler(lora, base, batch, key, temperature, top_p)
            # A host verifier is handed the text later.
            if verifier is None:
                return rollout.tokens_BNT, rollout.mask_BNT
            *verdicts, probability_BN = sample_and_verify.verify_with_probability(
                verifier, batch, rollout
            )
            if probability_BN is None:
                probability_BN = jnp.full(verdicts[0].shape, jnp.nan)
            return rollout.tokens_BNT, rollout.mask_BNT, *verdicts, probability_BN

        self._program = jax.jit(program, out_shardings=sharding.batch_sharding(run.mesh))

    def __call__(
        self, lora: Any, *, temperature: float = 0.0, top_p: float = 1.0, name: str = "evaluation"
    ) -> Judged:
        """Answers and verdicts with these adapters; the same images and keys in every call.

        Raises:
          host_verification.JudgeUnavailable: too many answers have no verdict.
        """
        found = list(self.batches(lora, temperature=temperature, top_p=top_p, name=name))
        if not any(part.rows for _, part in found):
            raise ValueError("not one image of the evaluation set can be read")
        judged = Judged(
            rows=[row for _, part in found for row in part.rows],
            responses=[said for _, part in found for said in part.responses],
            category_BN=np.concatenate([part.category_BN for _, part in found]),
            valid_BN=np.concatenate([part.valid_BN for _, part in found]),
            probability_BN=np.concatenate([part.probability_BN for _, part in found]),
        )
        if host_verification.is_host(self.run):
            host_verification.check_verified(self.run, name, judged.valid_BN)
        return judged

    def batches(
        self,
        lora: Any,
        *,
        temperature: float = 0.0,
        top_p: float = 1.0,
        name: str = "evaluation",
        start: int = 0,
    ) -> Iterator[tuple[list[int], Judged]]:
        """Numbers of images and what was said about them, batch after batch, in order.

        A host verifier judges a batch while the next ones are sampled.

        Args:
          lora: adapters.
          temperature: 0 is greedy.
          top_p: 1 for the whole distribution.
          name: of the progress bar.
          start: earlier images are neither sampled nor judged; the batches are cut as if they
            were, so that the others get the same answers.
        """
        if start >= len(self.source):
            return
        process = jax.process_index()
        first = start - start % self._batch_size
        stream = pipeline.evaluation_batches(
            self.source,
            self._batch_size,
            process=process,
            processes=jax.process_count(),
            start=first,
        )
        waiting: collections.deque[tuple] = collections.deque()
        bar = tqdm(
            total=len(self.source), initial=start, desc=name, unit="images", disable=process > 0
        )
        with bar:
            for count, local in stream:
                waiting.append(self._send(lora, count, local, temperature, top_p, start))
                if len(waiting) > _AHEAD:
                    yield self._finish(bar, *waiting.popleft())
            while waiting:
                yield self._finish(bar, *waiting.popleft())

    def _send(self, lora, count, local, temperature, top_p, start):
        """Samples a batch, and hands it to a host verifier."""
        run, on_host = self.run, host_verification.is_host(self.run)
        batch = self._build(local, count, start)
        found = self._program(
            lora,
            run.base,
            None if on_host else run.verifier,
            batch,
            jax.random.key(run.config.evaluation.seed),
            np.float32(temperature),
            np.float32(top_p),
        )
        sent = (
            host_verification.send(run, *found, batch.label_index_B, batch.weight_B)
            if on_host
            else None
        )
        return count, (*found, batch.weight_B), sent, start

    def _finish(self, bar, count, found, sent, start) -> tuple[list[int], Judged]:
        """The texts and verdicts of a batch that was sent."""
        if jax.process_count() > 1:
            found = multihost_utils.process_allgather(found, tiled=True)
        tokens, mask, *verdict, weight = (np.asarray(x)[: len(count)] for x in found)
        kept = weight > 0  # not the images that were left out, or are done already
        if sent is None:
            verdicts = [x[kept] for x in verdict]
        else:
            verdicts = host_verification.verdicts_of_rows(sent)
        indices = [i for i, k in zip(count, kept, strict=True) if k]
        bar.update(sum(i >= start for i in count))
        rows = [describe(self.source, i) for i in indices]
        responses = self.run.answers(tokens[kept], mask[kept])
        return indices, Judged(rows, responses, *verdicts)

    def score(self, category: np.ndarray) -> metrics.Score:
        """Correctness, specificity and HM of verdicts, with the configured weights."""
        return metrics.score(category, dict(self.run.config.evaluation.weights))

    def _build(self, local: Sequence[Mapping[str, Any]], count: Sequence[int], start: int):
        process, processes = jax.process_index(), jax.process_count()
        share = self._batch_size // processes
        rows = local or [self.source[0]]
        batch = self.run.build(rows, share)
        # Rows of images that are done already weigh nothing.
        wanted_B = np.zeros_like(batch.weight_B)
        for place, index in enumerate(count[process * share : (process + 1) * share]):
            wanted_B[place] = index >= start
        batch = batch.replace(weight_B=batch.weight_B * wanted_B)
        return self.run.place(batch)


def answer_part(
    evaluator: Evaluator,
    lora: Any,
    store: predictions.Predictions | None,
    part: predictions.Part,
    facts: Mapping[str, Any],
    *,
    temperature: float = 0.0,
    top_p: float = 1.0,
    overwrite: bool = False,
) -> None:
    """Writes a policy's answers and verdicts about all images, going on with what is there.

    All processes call it together. Answers whose judging failed in an earlier run are judged again.

    Args:
      evaluator: of the images.
      lora: adapters.
      store: where the lines go; None in all processes but the first.
      part: what the lines are.
      facts: what they are made with (`Predictions.begin`).
      temperature: as for `Evaluator`.
      top_p: as for `Evaluator`.
      overwrite: as for `Predictions.begin`.

    Raises:
      ValueError: the lines there were made with something else, or no image can be read.
      host_verification.JudgeUnavailable: too many answers have no verdict; the next call
        asks for them again.
    """
    run, start = evaluator.run, 0
    if store is not None:
        start = store.begin(part, facts, overwrite=overwrite)
        store.keep_config(part.data, json.loads(run.config.to_json()))
        if host_verification.is_host(run):
            judge_again(run, store, part)
    start = int(_told(start))
    name = f"{part.policy}, {part.data}, {part.prompt}, {part.decoding}"
    try:
        for indices, judged in evaluator.batches(
            lora, temperature=temperature, top_p=top_p, name=name, start=start
        ):
            if store is not None:
                store.append(part, lines_of(judged, indices))
    finally:
        if store is not None:
            store.flush()
    missing = total = 0
    if store is not None:
        said = [name for line in store.lines(part) for name in line["categories"]]
        missing, total = said.count(predictions.UNVERIFIED), len(said)
    missing, total = (int(x) for x in _told(np.array([missing, total])))
    if not total:
        raise ValueError(f"not one image of the evaluation set {part.data!r} can be read")
    if host_verification.is_host(run):
        host_verification.check_verified(run, str(part), np.arange(total) >= missing)


def _told(value: Any) -> Any:
    """What the first process knows, in all of them."""
    if jax.process_count() == 1:
        return value
    return multihost_utils.broadcast_one_to_all(np.asarray(value))


def judge_again(run: Run, store: predictions.Predictions, part: predictions.Part) -> None:
    """Has the answers of a part that have no verdict judged once more, and keeps what comes."""
    failed = [
        (line, n)
        for line in store.lines(part)
        for n, category in enumerate(line["categories"])
        if category == predictions.UNVERIFIED
    ]
    if not failed:
        return
    verdicts = run.verifier.submit(
        [[line["responses"][n]] for line, n in failed],
        [run.labels.leaf_index(line["label_id"]) for line, _ in failed],
    ).result()
    names = predictions.names_of(verdicts.category_BN[:, 0], verdicts.valid_BN[:, 0])
    for (line, n), category in zip(failed, names, strict=True):
        line["categories"][n] = category
    store.rewrite()


def lines_of(judged: Judged, indices: Sequence[int]) -> Iterator[dict[str, Any]]:
    """A line an image for `Predictions.append`: its row, number, answers, verdicts and, where a
    judge was asked about any of it, how probable they were."""
    found = judged.category_BN, judged.valid_BN, judged.probability_BN
    for row, index, said, category, valid, probability in zip(
        judged.rows, indices, judged.responses, *found, strict=True
    ):
        line = {
            **row,
            "index": index,
            "responses": said,
            "categories": predictions.names_of(category, valid),
        }
        if not np.isnan(probability).all():
            # NaN is no JSON.
            line["probabilities"] = [None if p != p else round(float(p), 6) for p in probability]
        yield line
