"""Between the devices and a host verifier: tokens to text, verdicts back into shards.

Each process judges its own rows, and then all processes learn of all verdicts, so that they decide
alike about what to learn from and when to stop.
"""

import concurrent.futures
import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from jax.experimental import multihost_utils

from speciarl_jax import assemble, exits, sharding, step, stopwatch
from speciarl_jax.types import PromptBatch, Rollout
from speciarl_jax.update import cut, join
from speciarl_jax.verify.category import Category
from speciarl_jax.verify.host_verifier import HostVerifier, Verdicts


class JudgeAway(exits.RestartNeeded):
    """Too many answers have no verdict to go on; the message says why, and what to do.

    A judge that was only away for a while answers the next start, which waits for it anew.
    """


def is_host(run: assemble.Run) -> bool:
    """Whether the run's verifier is asked on the host; otherwise it is part of the program."""
    return isinstance(run.verifier, HostVerifier)


@dataclasses.dataclass(frozen=True)
class Sent:
    """Responses that are being judged.

    Attributes:
      shape: (B, N) of all processes.
      rows: int, which of the B rows this process sent.
      future: verdicts on them.
    """

    shape: tuple[int, int]
    rows: np.ndarray
    future: concurrent.futures.Future[Verdicts]


def send(
    run: assemble.Run,
    tokens_BNT: jax.Array,
    mask_BNT: jax.Array,
    label_index_B: jax.Array,
    weight_B: jax.Array,
) -> Sent:
    """Hands this process's rows to the verifier, as soon as they exist; does not wait for it.

    Rows that pad the batch (weight 0) are not sent.
    """
    rows, weight = sharding.own_rows(weight_B)
    kept = np.flatnonzero(weight > 0)
    tokens, mask, labels = (
        sharding.own_rows(x)[1][kept] for x in (tokens_BNT, mask_BNT, label_index_B)
    )
    future = run.verifier.submit(run.answers(tokens, mask), labels.tolist())
    return Sent(tokens_BNT.shape[:2], rows[kept], future)


def collect(sent: Sequence[Sent]) -> tuple[Verdicts, np.ndarray]:
    """Waits for the verdicts on a batch, and exchanges them with the other processes.

    All processes must call it together, from their main threads.

    Args:
      sent: the parts of the batch; part i of C has rows i, i + C, i + 2 C and so on.

    Returns:
      Verdicts on all rows, UNPARSED and not valid where nobody sent a row, and bool [B], rows that
      somebody sent.
    """
    images, answers = sent[0].shape
    # In numbers whose zero stands for what this process did not send: the sum is the whole.
    table = np.zeros((6, images * len(sent), answers), np.float32)
    for i, part in enumerate(sent):
        mine = part.future.result()
        if not len(part.rows):
            continue
        probability_BN = np.nan if mine.probability_BN is None else mine.probability_BN
        table[:, part.rows * len(sent) + i] = (
            mine.category_BN - int(Category.UNPARSED),
            mine.valid_BN,
            mine.cached_BN,
            np.nan_to_num(mine.seconds_BN + 1, nan=0.0),
            np.ones_like(mine.seconds_BN),
            np.nan_to_num(np.broadcast_to(probability_BN, mine.valid_BN.shape) + 1, nan=0.0),
        )
    if jax.process_count() > 1:
        table = multihost_utils.process_allgather(table).sum(axis=0)
    verdicts = Verdicts(
        category_BN=table[0].astype(np.int32) + int(Category.UNPARSED),
        valid_BN=table[1] > 0,
        cached_BN=table[2] > 0,
        seconds_BN=np.where(table[3] > 0, table[3] - 1, np.nan),
        probability_BN=np.where(table[5] > 0, table[5] - 1, np.nan) if table[5].any() else None,
    )
    return verdicts, table[4, :, 0] > 0


def verdicts_of_rows(sent: Sent) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Categories, validity and probabilities (`Verdicts`) of the rows of one batch that do not pad
    it, in order; probabilities are NaN where there are none."""
    verdicts, sent_B = collect([sent])
    probability_BN = verdicts.probability_BN
    if probability_BN is None:
        probability_BN = np.full(verdicts.category_BN.shape, np.nan, np.float32)
    return tuple(x[sent_B] for x in (verdicts.category_BN, verdicts.valid_BN, probability_BN))


def check_verified(run: assemble.Run, what: str, valid_BN: np.ndarray) -> None:
    """Refuses to go on where too many answers have no verdict.

    Args:
      run: its verifier and limit.
      what: was judged, for the message.
      valid_BN: bool, of the answers that were sent.

    Raises:
      JudgeAway: shows the share, its limit, and what the verifier complained about.
    """
    limit = run.config.verifier.max_unverified
    share = 1 - np.mean(valid_BN)
    troubles = run.verifier.troubles()
    if share > limit:
        raise JudgeAway(
            f"{what}: {share:.1%} of the answers got no verdict, and "
            f"config.verifier.max_unverified is {limit:.1%}. "
            f"{troubles or 'Other processes may know why'}. Mend the judge and start the same "
            "command again: it goes on from the last checkpoint."
        )
    if troubles:
        logging.warning("%s: %.2f%% of the answers unverified; %s", what, 100 * share, troubles)


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
    run: assemble.Run,
    rollout_of: Callable,
    name: Callable[[int], str],
    mark: Callable = stopwatch.ignore,
) -> Callable[..., Answered]:
    """(lora, base, batch, number) -> `Answered`.

    The batch is sampled in `config.verifier.chunks` parts, and a part is judged while the next one
    is sampled. No sample depends on the number of parts. It raises `JudgeAway` where too many
    answers have no verdict.

    Args:
      run: with a host verifier.
      rollout_of: (lora, base, batch, number) -> features and rollout; traceable.
      name: number -> what messages call this batch.
      mark: told when a stage ends (`stopwatch`).
    """
    chunks, rows = run.config.verifier.chunks, sharding.batch_sharding(run.mesh)
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
        verdicts, sent_B = collect(sent)
        mark("verify")
        check_verified(run, name(int(number)), verdicts.valid_BN[sent_B])
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
        found |= step.describe_probability(
            probability_BN, np.concatenate([one.valid_BN for one in sure])
        )
    return found


def build_step(
    run: assemble.Run,
    rollout_of: Callable,
    learn: Callable,
    where: Any,
    mark: Callable = stopwatch.ignore,
) -> Callable[..., tuple[Any, dict[str, Any]]]:
    """(state, base, verifier, batch, step) -> (state, metrics), with a host verifier in between.

    Args:
      run: with a host verifier.
      rollout_of: (lora, base, batch, step) -> features and rollout; traceable.
      learn: `step.learn` with all its options; traceable.
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


def _send(run: assemble.Run, part: PromptBatch, sampled: tuple[jax.Array, Rollout]) -> Sent:
    _, rollout = sampled
    return send(run, rollout.tokens_BNT, rollout.mask_BNT, part.label_index_B, part.weight_B)


def _cut(batch: PromptBatch, parts: int) -> list[PromptBatch]:
    stacked = jax.tree.map(lambda x: cut(x, parts), batch)
    return [jax.tree.map(lambda x, i=i: x[i], stacked) for i in range(parts)]


def join_parts(parts: Sequence[Any]) -> Any:
    """Pytrees of the parts of a batch to one of the batch: undoes `update.cut`."""
    return jax.tree.map(lambda *x: join(jnp.stack(x)), *parts)
