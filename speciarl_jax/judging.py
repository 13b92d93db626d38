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

from speciarl_jax import assemble, sharding, stopwatch
from speciarl_jax.types import PromptBatch, Rollout
from speciarl_jax.update import cut
from speciarl_jax.verify.category import Category
from speciarl_jax.verify.host_verifier import HostVerifier, Verdicts


class JudgeAway(RuntimeError):
    """Too many answers have no verdict to go on; the message says why, and what to do."""


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
    table = np.zeros((5, images * len(sent), answers), np.float32)
    for i, part in enumerate(sent):
        mine = part.future.result()
        if not len(part.rows):
            continue
        table[:, part.rows * len(sent) + i] = (
            mine.category_BN - int(Category.UNPARSED),
            mine.valid_BN,
            mine.cached_BN,
            np.nan_to_num(mine.seconds_BN + 1, nan=0.0),
            np.ones_like(mine.seconds_BN),
        )
    if jax.process_count() > 1:
        table = multihost_utils.process_allgather(table).sum(axis=0)
    verdicts = Verdicts(
        category_BN=table[0].astype(np.int32) + int(Category.UNPARSED),
        valid_BN=table[1] > 0,
        cached_BN=table[2] > 0,
        seconds_BN=np.where(table[3] > 0, table[3] - 1, np.nan),
    )
    return verdicts, table[4, :, 0] > 0


def verdicts_of_rows(sent: Sent) -> tuple[np.ndarray, np.ndarray]:
    """Categories and validity of the rows of one batch that do not pad it, in order."""
    verdicts, sent_B = collect([sent])
    return verdicts.category_BN[sent_B], verdicts.valid_BN[sent_B]


def describe(verdicts: Verdicts, sent_B: np.ndarray) -> dict[str, float]:
    """What a host verifier did: share of answers found in the cache, pairs that the judge was asked
    about with success, and the seconds that these took."""
    seconds = verdicts.seconds_BN[~np.isnan(verdicts.seconds_BN)]
    answers = max(sent_B.sum() * verdicts.category_BN.shape[1], 1)
    found = {
        "verify/cache_hits": float(verdicts.cached_BN.sum() / answers),
        "verify/asked": float(len(seconds)),
    }
    if len(seconds):
        found["verify/latency_p50"] = float(np.percentile(seconds, 50))
        found["verify/latency_p95"] = float(np.percentile(seconds, 95))
    return found


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


def build_step(
    run: assemble.Run,
    rollout_of: Callable,
    learn: Callable,
    where: Any,
    mark: Callable = stopwatch.ignore,
) -> Callable[..., tuple[Any, dict[str, Any]]]:
    """(state, base, verifier, batch, step) -> (state, metrics), with a host verifier in between.

    The batch is sampled in `config.verifier.chunks` parts, and a part is judged while the next one
    is sampled. No sample depends on the number of parts.

    Args:
      run: with a host verifier.
      rollout_of: (lora, base, batch, step) -> features and rollout; traceable.
      learn: `step.learn` with all its options; traceable.
      where: shardings of the state.
      mark: told when a stage ends (`stopwatch`).
    """
    chunks = run.config.verifier.chunks
    rows, copies = sharding.batch_sharding(run.mesh), sharding.replicated(run.mesh)
    cut_program = jax.jit(lambda batch: _cut(batch, chunks), out_shardings=rows)
    rollout_program = jax.jit(rollout_of, out_shardings=rows)

    def learn_from_parts(state, base, batch, parts, category_BN, valid_BN):
        features_BMD, rollout = jax.tree.map(_join, *parts)
        return learn(state, base, batch, features_BMD, rollout, category_BN, valid_BN)

    learn_program = jax.jit(learn_from_parts, donate_argnums=0, out_shardings=(where, copies))

    def in_parts(state, base, verifier, batch, number):
        del verifier
        sent, sampled = [], []
        parts = cut_program(batch) if chunks > 1 else [batch]
        for i, part in enumerate(parts):
            # The devices get the next part before the host waits for the one before it.
            sampled.append(rollout_program(state.lora, base, part, number))
            if i:
                sent.append(_send(run, parts[i - 1], sampled[i - 1]))
        sent.append(_send(run, parts[-1], sampled[-1]))
        mark("rollout", sampled[-1][1].mask_BNT)
        verdicts, sent_B = collect(sent)
        mark("verify")
        # Before the update: the state is as it was when this raises.
        check_verified(run, f"step {int(number)}", verdicts.valid_BN[sent_B])
        category_BN, valid_BN = (
            sharding.put_rows(run.mesh, x) for x in (verdicts.category_BN, verdicts.valid_BN)
        )
        state, metrics = learn_program(state, base, batch, sampled, category_BN, valid_BN)
        return state, metrics | describe(verdicts, sent_B)

    return in_parts


def _send(run: assemble.Run, part: PromptBatch, sampled: tuple[jax.Array, Rollout]) -> Sent:
    _, rollout = sampled
    return send(run, rollout.tokens_BNT, rollout.mask_BNT, part.label_index_B, part.weight_B)


def _cut(batch: PromptBatch, parts: int) -> list[PromptBatch]:
    stacked = jax.tree.map(lambda x: cut(x, parts), batch)
    return [jax.tree.map(lambda x, i=i: x[i], stacked) for i in range(parts)]


def _join(*parts: jax.Array) -> jax.Array:
    """The reverse of `cut`."""
    return jnp.stack(parts, axis=1).reshape(-1, *parts[0].shape[1:])
