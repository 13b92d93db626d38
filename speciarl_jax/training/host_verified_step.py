"""A step with a host verifier: parts of a batch are judged while the next part is sampled."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from speciarl_jax.experiment import host_verification
from speciarl_jax.experiment.run import Run
from speciarl_jax.models.prompt_batch import PromptBatch
from speciarl_jax.rollout import sample_and_verify
from speciarl_jax.rollout.types import Rollout
from speciarl_jax.runtime import sharding, step_timer
from speciarl_jax.runtime.batching import merge_strided, split_strided
from speciarl_jax.verifiers.base import Verdicts


@dataclasses.dataclass(frozen=True)
class Answered:
    """Answers of a batch with the verdicts on them.

    Attributes:
      parts: features and rollout of each part of the batch.
      category_BN: int32, of the whole batch, on the devices.
      valid_BN: bool, likewise.
      verdicts: the same on the host, with what they cost.
      sent_B: bool, rows that do not pad the batch.
    """

    parts: Sequence[tuple[jax.Array, Rollout]]
    category_BN: jax.Array
    valid_BN: jax.Array
    verdicts: Verdicts
    sent_B: np.ndarray


def answerer(
    run: Run,
    rollout_of: Callable,
    name: Callable[[int], str],
    mark: Callable = step_timer.ignore,
) -> Callable[..., Answered]:
    """(lora, base, batch, number) -> `Answered`.

    The batch is sampled in `config.verifier.num_chunks` parts, and a part is judged while the
    next one is sampled. No sample depends on the number of parts. It raises `JudgeUnavailable`
    where too many answers have no verdict.

    Args:
      run: with a host verifier.
      rollout_of: (lora, base, batch, number) -> features and rollout; traceable.
      name: number -> what messages call this batch.
      mark: told when a stage ends (`stopwatch`).
    """
    chunks, rows = run.config.verifier.num_chunks, sharding.batch_sharding(run.mesh)
    cut_program = jax.jit(lambda batch: _cut(batch, chunks), out_shardings=rows)
    rollout_program = jax.jit(rollout_of, out_shardings=rows)

    def answer(lora, base, batch, number):
        sent, sampled = [], []
        parts = cut_program(batch) if chunks > 1 else [batch]
        for i, part in enumerate(parts):
            # The devices get the next part before the host waits for the one before it.
            sampled.append(rollout_program(lora, base, part, number))
            if i:
                sent.append(_send(run, parts[i - 1], sampled[i - 1]))
        sent.append(_send(run, parts[-1], sampled[-1]))
        mark("rollout", sampled[-1][1].mask_BNT)
        verdicts, sent_B = host_verification.collect(sent)
        mark("verify")
        host_verification.check_verified(run, name(int(number)), verdicts.valid_BN[sent_B])
        on_devices = (
            sharding.put_rows(run.mesh, x) for x in (verdicts.category_BN, verdicts.valid_BN)
        )
        return Answered(sampled, *on_devices, verdicts, sent_B)

    return answer


def describe(answered: Sequence[Answered]) -> dict[str, float]:
    """What a host verifier did in a step: share of answers found in the cache, pairs that the judge
    was asked about with success, and the seconds that these took."""
    seconds = np.concatenate([one.verdicts.seconds_BN.ravel() for one in answered])
    seconds = seconds[~np.isnan(seconds)]
    answers = sum(one.sent_B.sum() * one.verdicts.category_BN.shape[1] for one in answered)
    cached = sum(one.verdicts.cached_BN.sum() for one in answered)
    found = {
        "verify/cache_hits": float(cached / max(answers, 1)),
        "verify/asked": float(len(seconds)),
    }
    if len(seconds):
        found["verify/latency_p50"] = float(np.percentile(seconds, 50))
        found["verify/latency_p95"] = float(np.percentile(seconds, 95))
    sure = [one.verdicts for one in answered if one.verdicts.probability_BN is not None]
    if sure:
        probability_BN = np.concatenate([one.probability_BN for one in sure])
        found |= sample_and_verify.describe_probability(
            probability_BN, np.concatenate([one.valid_BN for one in sure])
        )
    return found


def build_step(
    run: Run,
    rollout_of: Callable,
    learn: Callable,
    where: Any,
    mark: Callable = step_timer.ignore,
) -> Callable[..., tuple[Any, dict[str, Any]]]:
    """(state, base, verifier, batch, step) -> (state, metrics), with a host verifier in between.

    Args:
      run: with a host verifier.
      rollout_of: (lora, base, batch, step) -> features and rollout; traceable.
      learn: `rl_step.learn` with all its options; traceable.
      where: shardings of the state.
      mark: told when a stage ends (`stopwatch`).
    """
    answer = answerer(run, rollout_of, lambda number: f"step {number}", mark)

    def learn_from_parts(state, base, batch, parts, category_BN, valid_BN):
        features_BMD, rollout = join_parts(parts)
        return learn(state, base, batch, features_BMD, rollout, category_BN, valid_BN)

    copies = sharding.replicated(run.mesh)
    learn_program = jax.jit(learn_from_parts, donate_argnums=0, out_shardings=(where, copies))

    def program(state, base, verifier, batch, number):
        del verifier
        # Before the update: the state is as it was when this raises.
        found = answer(state.lora, base, batch, number)
        state, metrics = learn_program(
            state, base, batch, found.parts, found.category_BN, found.valid_BN
        )
        return state, metrics | describe([found])

    return program


def _send(
    run: Run, part: PromptBatch, sampled: tuple[jax.Array, Rollout]
) -> host_verification.Sent:
    _, rollout = sampled
    return host_verification.send(
        run, rollout.tokens_BNT, rollout.mask_BNT, part.label_index_B, part.weight_B
    )


def _cut(batch: PromptBatch, parts: int) -> list[PromptBatch]:
    stacked = jax.tree.map(lambda x: split_strided(x, parts), batch)
    return [jax.tree.map(lambda x, i=i: x[i], stacked) for i in range(parts)]


def join_parts(parts: Sequence[Any]) -> Any:
    """Pytrees of the parts of a batch to one of the batch: undoes `split_strided`."""
    return jax.tree.map(lambda *x: merge_strided(jnp.stack(x)), *parts)
