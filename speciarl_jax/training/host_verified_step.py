"""Samples a batch in parts and has a host verifier judge a part while the next one is sampled."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from speciarl_jax.experiment import host_verification, in_graph_verification
from speciarl_jax.experiment.run import Run
from speciarl_jax.models.prompt_batch import PromptBatch
from speciarl_jax.rollout.types import Groups
from speciarl_jax.runtime import sharding
from speciarl_jax.runtime.batching import merge_strided, split_strided
from speciarl_jax.training.state import TrainState
from speciarl_jax.verifiers.base import Verdicts


class HostVerdicts(NamedTuple):
    """Holds the verdicts on a batch on the host, with what they cost."""

    verdicts: Verdicts  # on all rows
    sent_B: np.ndarray  # bool, rows that do not pad the batch


class Pending(NamedTuple):
    """Holds a batch whose rollouts are being judged."""

    batch: PromptBatch
    sampled: list[Any]  # features and rollout of each part
    sent: list[host_verification.Sent]  # the parts
    name: str  # of the step, for errors


class Judge:
    """Samples batches and has them judged on the host.

    A batch is sampled in `config.verifier.num_chunks` parts. No sample depends on their number.
    """

    def __init__(self, run: Run, rollout_program: Callable, stage_done: Callable[..., None]):
        """Compiles nothing yet.

        Args:
          rollout_program: (lora, base, batch, number) -> features and rollout.
          stage_done: is told when a stage ends (`step_timer`).
        """
        self._run, self._rollout, self._stage_done = run, rollout_program, stage_done
        chunks = self._chunks = run.config.verifier.num_chunks
        batch_sharding = sharding.batch_sharding(run.mesh)

        @functools.partial(jax.jit, out_shardings=batch_sharding)
        def split(batch):
            stacked = jax.tree.map(lambda x: split_strided(x, chunks), batch)
            return [jax.tree.map(lambda x, i=i: x[i], stacked) for i in range(chunks)]

        @functools.partial(jax.jit, out_shardings=batch_sharding)
        def merge(parts):
            return jax.tree.map(lambda *x: merge_strided(jnp.stack(x)), *parts)

        self._split, self._merge = split, merge

    def __call__(
        self, state: TrainState, base: Any, verifier: Any, batch: PromptBatch, number: Any
    ) -> tuple[Groups, HostVerdicts]:
        """Samples a batch and waits for its verdicts; raises as `collect` does."""
        del verifier
        return self.collect(self.send(state.lora, base, batch, number))

    def send(self, lora: Any, base: Any, batch: PromptBatch, number: Any) -> Pending:
        """Samples a batch and hands its rollouts to the verifier, without waiting for it."""
        sent, sampled = [], []
        parts = self._split(batch) if self._chunks > 1 else [batch]
        for i, part in enumerate(parts):
            # The devices get the next part before the host waits for the one before it.
            sampled.append(self._rollout(lora, base, part, number))
            if i:
                sent.append(_send(self._run, parts[i - 1], sampled[i - 1]))
        sent.append(_send(self._run, parts[-1], sampled[-1]))
        self._stage_done("rollout", sampled[-1][1].mask_BNT)
        return Pending(batch, sampled, sent, self._name(int(number)))

    def collect(self, pending: Pending) -> tuple[Groups, HostVerdicts]:
        """Waits for the verdicts on a batch.

        Raises:
          host_verification.JudgeUnavailable: too many rollouts have no verdict.
        """
        run, sampled = self._run, pending.sampled
        found = HostVerdicts(*host_verification.collect(pending.sent))
        self._stage_done("verify")
        verdicts = found.verdicts
        host_verification.check_verified(run, pending.name, verdicts.valid_BN[found.sent_B])
        category_BN, valid_BN = (
            sharding.put_rows(run.mesh, x) for x in (verdicts.category_BN, verdicts.valid_BN)
        )
        whole = self._merge(sampled) if self._chunks > 1 else sampled[0]
        return Groups(pending.batch, *whole, category_BN, valid_BN), found

    def _name(self, number: int) -> str:
        rounds = self._run.config.train.dynamic_sampling.max_rounds
        if not rounds:
            return f"step {number}"
        step, earlier = divmod(number, rounds)
        return f"step {step}, round {earlier + 1}"


def describe(batches: Sequence[HostVerdicts]) -> dict[str, Any]:
    """Describes what a host verifier did in a step.

    Returns:
      Share of rollouts whose verdicts were cached, number of pairs that the judge answered, seconds
      that these took, and how sure the judge was if it says so.
    """
    seconds = np.concatenate([one.verdicts.seconds_BN.ravel() for one in batches])
    seconds = seconds[~np.isnan(seconds)]
    rollouts = sum(one.sent_B.sum() * one.verdicts.category_BN.shape[1] for one in batches)
    cached = sum(one.verdicts.cached_BN.sum() for one in batches)
    found = {
        "verify/cache_hits": float(cached / max(rollouts, 1)),
        "verify/asked": float(len(seconds)),
    }
    if len(seconds):
        found["verify/latency_p50"] = float(np.percentile(seconds, 50))
        found["verify/latency_p95"] = float(np.percentile(seconds, 95))
    return found | in_graph_verification.describe(_joined([one.verdicts for one in batches]))


def _joined(batches: Sequence[Verdicts]) -> Verdicts:
    """Joins batches of verdicts; a field that one of them lacks is None."""
    fields = {}
    for field in dataclasses.fields(Verdicts):
        values = [getattr(one, field.name) for one in batches]
        fields[field.name] = None if any(v is None for v in values) else np.concatenate(values)
    return Verdicts(**fields)


def _send(run: Run, part: PromptBatch, sampled: Any) -> host_verification.Sent:
    _, rollout = sampled
    return host_verification.send(
        run, rollout.tokens_BNT, rollout.mask_BNT, part.label_index_B, part.labelled_B
    )
