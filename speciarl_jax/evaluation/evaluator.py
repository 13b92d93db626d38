"""Samples a policy's answers about the evaluation images, and judges them."""

import collections
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from tqdm import tqdm

from speciarl_jax.data import pipeline
from speciarl_jax.data.images import describe
from speciarl_jax.evaluation import metrics, predictions
from speciarl_jax.experiment import host_verification, in_graph_verification
from speciarl_jax.experiment.run import Run
from speciarl_jax.runtime import sharding

# How many batches are sampled ahead while a host verifier judges.
_AHEAD = 2


class Judged(NamedTuple):
    """Answers of a policy about B images, N an image, and their verdicts."""

    rows: list[Mapping[str, Any]]  # rows of the images, without the pixels
    responses: list[list[str]]  # B lists of N texts
    category_BN: np.ndarray  # int32 `Category`
    valid_BN: np.ndarray  # bool, a verdict exists; only a judge leaves answers without one
    # float, of the verdict; NaN where no judge was asked, or it gave none.
    probability_BN: np.ndarray

    @property
    def verified(self) -> np.ndarray:
        """Categories [B', N] of the images all of whose answers have a verdict."""
        return self.category_BN[self.valid_BN.all(axis=1)]


class Evaluator:
    """Samples and verifies answers about the evaluation images; compiled once."""

    def __init__(
        self,
        run: Run,
        *,
        num_rollouts: int = 1,
        batch_size: int | None = None,
        program: Callable[..., tuple[jax.Array, ...]] | None = None,
    ):
        """Opens the images and defines the program.

        Args:
          num_rollouts: N answers an image.
          batch_size: images a call; None for `config.evaluation.batch_size`.
          program: of another evaluator, of the same policy and `num_rollouts`; None for a new one.

        Raises:
          ValueError: options are unknown, or the batch does not divide among the devices.
        """
        config = run.config
        self.run = run
        self._batch_size = config.evaluation.batch_size if batch_size is None else batch_size
        key = "config.evaluation.batch_size" if batch_size is None else "batch_size of an Evaluator"
        sharding.check_batch(run.mesh, key, self._batch_size)
        self.source = run.eval_source
        self.program = program or answer_program(run, num_rollouts)

    def __call__(self, lora: Any, **sampling: float) -> Judged:
        """Answers about all images with these adapters, and judges; with the same keys each call.

        `sampling` are `temperature` and `top_p`, as for `batches`.

        Raises:
          ValueError: no image can be read.
          host_verification.JudgeUnavailable: too many answers have no verdict.
        """
        parts = [part for _, part in self.batches(lora, **sampling)]
        if not any(part.rows for part in parts):
            raise ValueError("not one image of the evaluation set can be read")
        rows, responses, *verdicts = zip(*parts, strict=True)
        judged = Judged(sum(rows, []), sum(responses, []), *map(np.concatenate, verdicts))
        if host_verification.is_host(self.run):
            host_verification.check_verified(self.run, "evaluation", judged.valid_BN)
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
        """Yields the indices of the images of each batch, and the judged answers, in order.

        A host verifier judges a batch while the next ones are sampled.

        Args:
          temperature: 0 is greedy.
          top_p: 1 for the whole distribution.
          name: of the progress bar.
          start: index of the first image; earlier ones are neither sampled nor judged. Batches have
            the same boundaries whatever `start` is, so that an image gets the same answers.
        """
        if start >= len(self.source):
            return
        process = jax.process_index()
        stream = pipeline.evaluation_batches(
            self.source,
            self._batch_size,
            process=process,
            processes=jax.process_count(),
            start=start - start % self._batch_size,
        )
        waiting: collections.deque[tuple] = collections.deque()
        with tqdm(
            total=len(self.source),
            initial=start,
            desc=name,
            unit="images",
            disable=process > 0,
            leave=None,  # but for one below the bar of the training
        ) as bar:
            for indices, local in stream:
                waiting.append(self._send(lora, indices, local, temperature, top_p, start))
                if len(waiting) > _AHEAD:
                    yield self._finish(bar, *waiting.popleft())
            while waiting:
                yield self._finish(bar, *waiting.popleft())

    def _send(self, lora, indices, local, temperature, top_p, start):
        """Samples a batch, and hands it to a host verifier."""
        run, sent = self.run, None
        on_host = host_verification.is_host(run)
        batch = self._build(local, indices, start)
        found = self.program(
            lora,
            run.base,
            None if on_host else run.verifier,
            batch,
            jax.random.key(run.config.evaluation.seed),
            np.float32(temperature),
            np.float32(top_p),
        )
        if on_host:
            sent = host_verification.send(run, *found, batch.label_index_B, batch.weight_B)
        return indices, (*found, batch.weight_B), sent, start

    def _finish(self, bar, indices, found, sent, start) -> tuple[list[int], Judged]:
        """Fetches the texts and verdicts of a batch that was sent."""
        if jax.process_count() > 1:
            found = multihost_utils.process_allgather(found, tiled=True)
        tokens, mask, *verdict, weight = (np.asarray(x)[: len(indices)] for x in found)
        kept = weight > 0  # neither skipped nor before `start`
        verdicts = host_verification.verdicts_of_rows(sent) if sent else [x[kept] for x in verdict]
        bar.update(sum(i >= start for i in indices))
        indices = [i for i, k in zip(indices, kept, strict=True) if k]
        rows = [describe(self.source, i) for i in indices]
        responses = self.run.answers(tokens[kept], mask[kept])
        return indices, Judged(rows, responses, *verdicts)

    def score(self, category: np.ndarray) -> metrics.Score:
        """Scores verdicts with the configured weights."""
        weights = metrics.configured_weights(self.run.config.evaluation.weights)
        return metrics.score(category, weights)

    def _build(self, local: Sequence[Mapping[str, Any]], indices: Sequence[int], start: int):
        """Builds a batch from this process's rows; images before `start` get weight 0."""
        process, share = jax.process_index(), self._batch_size // jax.process_count()
        batch = self.run.build(local or [self.source[0]], share)
        mine = np.array(indices[process * share : (process + 1) * share])
        wanted_B = np.pad(mine >= start, (0, share - len(mine))).astype(np.float32)
        return self.run.place(batch.replace(weight_B=batch.weight_B * wanted_B))


def answer_program(run: Run, num_rollouts: int) -> Callable[..., tuple[jax.Array, ...]]:
    """Jits (lora, base, verifier, batch, key, temperature, top_p) -> tokens, mask and verdicts.

    The verdicts are category, validity and probability [B, N]; there are none where `verifier` is
    None: a host verifier gets the text later.
    """
    sampler = run.sampler(num_rollouts, run.config.rollout.max_tokens)

    def program(lora, base, verifier, batch, key, temperature, top_p):
        _, rollout = sampler(lora, base, batch, key, temperature, top_p)
        if verifier is None:
            return rollout.tokens_BNT, rollout.mask_BNT
        found = in_graph_verification.verify(verifier, batch, rollout)
        probability_BN = found.probability_BN
        if probability_BN is None:
            probability_BN = jnp.full(found.category_BN.shape, jnp.nan)
        verdicts = found.category_BN, found.valid_BN, probability_BN
        return rollout.tokens_BNT, rollout.mask_BNT, *verdicts

    return jax.jit(program, out_shardings=sharding.batch_sharding(run.mesh))


def answer_part(
    evaluator: Evaluator,
    lora: Any,
    store: predictions.Predictions | None,
    part: predictions.Part,
    known: Mapping[str, Any],
    *,
    overwrite: bool = False,
    anew: bool = False,
    **sampling: float,
) -> None:
    """Writes a policy's answers and verdicts about all images, after the lines that are there.

    All processes must call it together. Answers without a verdict from an earlier run are judged
    again.

    Args:
      store: receives the lines; None in all processes but the first.
      known: provenance of the answers (`provenance.of_part`).
      overwrite: as for `Predictions.begin`.
      anew: likewise.
      **sampling: `temperature` and `top_p`, as for `Evaluator.batches`.

    Raises:
      ValueError: the lines there have another provenance, or no image can be read.
      host_verification.JudgeUnavailable: too many answers have no verdict; the next call
        asks for them again.
    """
    run, start = evaluator.run, 0
    if store is not None:
        start = store.begin(part, known, overwrite=overwrite, anew=anew)
        store.keep_config(part.data, json.loads(run.config.to_json()))
        if host_verification.is_host(run):
            judge_again(run, store, part)
    start = int(_broadcast(start))
    name = f"{part.policy}, {part.data}, {part.prompt}, {part.decoding}"
    try:
        for indices, judged in evaluator.batches(lora, name=name, start=start, **sampling):
            if store is not None:
                store.append(part, lines_of(judged, indices))
    finally:
        if store is not None:
            store.flush()
    missing = total = 0
    if store is not None:
        said = [name for line in store.lines(part) for name in line["categories"]]
        missing, total = said.count(predictions.UNVERIFIED), len(said)
    missing, total = (int(x) for x in _broadcast(np.array([missing, total])))
    if not total:
        raise ValueError(f"not one image of the evaluation set {part.data!r} can be read")
    if host_verification.is_host(run):
        host_verification.check_verified(run, str(part), np.arange(total) >= missing)


def _broadcast(value: Any) -> Any:
    """Returns the value of the first process in all of them."""
    if jax.process_count() == 1:
        return value
    return multihost_utils.broadcast_one_to_all(np.asarray(value))


def judge_again(run: Run, store: predictions.Predictions, part: predictions.Part) -> None:
    """Judges the answers of a part that have no verdict once more, and keeps the verdicts."""
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
    """Yields a line an image for `Predictions.append`; with "probabilities" if a judge gave any."""
    for index, row, said, category, valid, probability in zip(indices, *judged, strict=True):
        names = predictions.names_of(category, valid)
        line = {**row, "index": index, "responses": said, "categories": names}
        if not np.isnan(probability).all():
            # JSON has no NaN.
            line["probabilities"] = [None if p != p else round(float(p), 6) for p in probability]
        yield line
