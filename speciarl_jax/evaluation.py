"""Answers and verdicts of a policy about the evaluation pictures."""

import dataclasses
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from tqdm import tqdm

from speciarl_jax import assemble, judging, metrics, sharding, step
from speciarl_jax.data import pipeline
from speciarl_jax.data.pictures import describe
from speciarl_jax.verify.category import Category

# Stands for the verdict of an answer that has none, where answers are written.
UNVERIFIED = "unverified"


@dataclasses.dataclass(frozen=True)
class Judged:
    """Answers of a policy about the evaluation pictures.

    Attributes:
      rows: the pictures' own rows, without the pixels.
      responses: N texts a picture.
      category_BN: int32 `Category`.
      valid_BN: bool, a verdict exists; only a host verifier leaves answers without one.
    """

    rows: list[Mapping[str, Any]]
    responses: list[list[str]]
    category_BN: np.ndarray
    valid_BN: np.ndarray

    @property
    def verified(self) -> np.ndarray:
        """Categories [B', N] of the pictures all of whose answers have a verdict."""
        return self.category_BN[self.valid_BN.all(axis=1)]


class Evaluator:
    """Samples and verifies answers about the evaluation pictures; compiled once."""

    def __init__(self, run: assemble.Run, *, num_rollouts: int = 1, batch_size: int | None = None):
        """Lists the pictures.

        Args:
          run: policy, verifier, data.
          num_rollouts: N answers a picture.
          batch_size: pictures a call; `config.evaluation.batch_size` when None.

        Raises:
          ValueError: unknown options, or a batch that the mesh cannot cut.
        """
        config = run.config
        self._run = run
        self._batch_size = batch_size or config.evaluation.batch_size
        sharding.check_batch(run.mesh, "pictures of an evaluation batch", self._batch_size)
        self.source = run.source(config.evaluation.seed, **config.evaluation.options)
        sampler = run.sampler(num_rollouts, config.rollout.max_tokens)

        def program(lora, base, verifier, batch, key, temperature, top_p):
            _, rollout = sampler(lora, base, batch, key, temperature, top_p)
            # A host verifier is handed the text later.
            verdicts = step.verify(verifier, batch, rollout) if verifier is not None else ()
            return rollout.tokens_BNT, rollout.mask_BNT, *verdicts

        self._program = jax.jit(program, out_shardings=sharding.batch_sharding(run.mesh))

    def __call__(
        self, lora: Any, *, temperature: float = 0.0, top_p: float = 1.0, name: str = "evaluation"
    ) -> Judged:
        """Answers and verdicts with these adapters; the same pictures and keys in every call.

        Raises:
          judging.JudgeAway: too many answers have no verdict.
        """
        run, on_host = self._run, judging.is_host(self._run)
        key = jax.random.key(run.config.evaluation.seed)
        process, processes = jax.process_index(), jax.process_count()
        rows, responses, verdicts, sent = [], [], [], []
        batches = list(range(0, len(self.source), self._batch_size))
        stream = pipeline.evaluation_batches(
            self.source, self._batch_size, process=process, processes=processes
        )
        for count, local in tqdm(stream, total=len(batches), desc=name, disable=process > 0):
            batch = self._build(local)
            verifier = None if on_host else run.verifier
            found = self._program(
                lora, run.base, verifier, batch, key, np.float32(temperature), np.float32(top_p)
            )
            if on_host:
                # Judged while the next batches are sampled.
                sent.append(judging.send(run, *found, batch.label_index_B, batch.weight_B))
            found = (*found, batch.weight_B)
            if processes > 1:
                found = multihost_utils.process_allgather(found, tiled=True)
            tokens, mask, *verdict, weight = (np.asarray(x)[: len(count)] for x in found)
            kept = weight > 0  # not the pictures that were left out
            responses += run.answers(tokens[kept], mask[kept])
            verdicts.append([x[kept] for x in verdict])
            rows += [describe(self.source, i) for i, k in zip(count, kept, strict=True) if k]
        if not rows:
            raise ValueError("not one picture of the evaluation set can be read")
        if on_host:
            verdicts = [judging.verdicts_of_rows(one) for one in sent]
        category_BN, valid_BN = (np.concatenate(x) for x in zip(*verdicts, strict=True))
        if on_host:
            judging.check_verified(run, name, valid_BN)
        return Judged(rows, responses, category_BN, valid_BN)

    def score(self, category: np.ndarray) -> metrics.Score:
        """Correctness, specificity and HM of verdicts, with the configured weights."""
        return metrics.score(category, dict(self._run.config.evaluation.weights))

    def _build(self, local: Sequence[Mapping[str, Any]]):
        share = self._batch_size // jax.process_count()
        rows = local or [self.source[0]]
        batch = self._run.build(rows, share)
        if not local:
            batch = batch.replace(weight_B=np.zeros_like(batch.weight_B))
        return self._run.place(batch)


def write_answers(path: pathlib.Path, judged: Judged) -> None:
    """One JSON line a picture: what it is, what was said, and the verdicts."""
    with path.open("w") as file:
        for row, said, category, valid in zip(
            judged.rows, judged.responses, judged.category_BN, judged.valid_BN, strict=True
        ):
            verdicts = [
                Category(int(c)).name.lower() if known else UNVERIFIED
                for c, known in zip(category, valid, strict=True)
            ]
            file.write(json.dumps({**row, "responses": said, "categories": verdicts}) + "\n")
