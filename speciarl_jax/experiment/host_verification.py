"""Between the devices and a host verifier: tokens to text, verdicts back into shards.

Each process judges its own rows, and then all processes learn of all verdicts, so that they decide
alike about what to learn from and when to stop.
"""

import concurrent.futures
import dataclasses
from collections.abc import Sequence

import jax
import numpy as np
from absl import logging
from jax.experimental import multihost_utils

from speciarl_jax.experiment import extension_points
from speciarl_jax.experiment.run import Run
from speciarl_jax.runtime import exit_codes, sharding
from speciarl_jax.verifiers import parsing
from speciarl_jax.verifiers.base import HostVerifier, Verdicts
from speciarl_jax.verifiers.category import Category


class JudgeUnavailable(exit_codes.RestartNeeded):
    """Too many answers have no verdict to go on; the message says why, and what to do.

    A judge that was only away for a while answers the next start, which waits for it anew.
    """


def is_host(run: Run) -> bool:
    """Whether the run's verifier is asked on the host; otherwise it is part of the program."""
    return isinstance(run.verifier, HostVerifier)


@dataclasses.dataclass(frozen=True)
class Sent:
    """Responses that are being judged."""

    shape: tuple[int, int]  # (B, N) of all processes
    rows: np.ndarray  # int, which of the B rows this process sent
    answer_BN: np.ndarray  # of these rows, `Verdicts.answer_BN`
    future: concurrent.futures.Future[Verdicts]  # verdicts on them


def send(
    run: Run,
    tokens_BNT: jax.Array,
    mask_BNT: jax.Array,
    label_index_B: jax.Array,
    labelled_B: jax.Array,
) -> Sent:
    """Hands this process's rows to the verifier, as soon as they exist; does not wait for it.

    Rows without a label, and those that pad the batch, are not sent (`PromptBatch.labelled_B`).
    """
    rows, labelled = sharding.own_rows(labelled_B)
    kept = np.flatnonzero(labelled)
    tokens, mask, labels = (
        sharding.own_rows(x)[1][kept] for x in (tokens_BNT, mask_BNT, label_index_B)
    )
    responses = run.answers(tokens, mask)
    answer_BN = np.array([[parsing.answer_number(text) for text in group] for group in responses])
    future = run.verifier.submit(responses, labels.tolist())
    return Sent(tokens_BNT.shape[:2], rows[kept], answer_BN, future)


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
    table = np.zeros((8, images * len(sent), answers), np.float32)
    for i, part in enumerate(sent):
        mine = part.future.result()
        if not len(part.rows):
            continue
        mine = extension_points.host_verdicts(mine, part.answer_BN.shape)
        probability_BN = np.nan if mine.probability_BN is None else mine.probability_BN
        table[:, part.rows * len(sent) + i] = (
            mine.category_BN - int(Category.UNPARSED),
            mine.valid_BN,
            mine.cached_BN,
            np.nan_to_num(mine.seconds_BN + 1, nan=0.0),
            np.ones_like(mine.seconds_BN),
            np.nan_to_num(np.broadcast_to(probability_BN, mine.valid_BN.shape) + 1, nan=0.0),
            # 0: no tree was asked; 1: it knew nothing; 2: it decided.
            np.zeros_like(mine.seconds_BN) if mine.matched_BN is None else mine.matched_BN + 1.0,
            part.answer_BN,
        )
    if jax.process_count() > 1:
        table = multihost_utils.process_allgather(table).sum(axis=0)
    verdicts = Verdicts(
        category_BN=table[0].astype(np.int32) + int(Category.UNPARSED),
        valid_BN=table[1] > 0,
        cached_BN=table[2] > 0,
        seconds_BN=np.where(table[3] > 0, table[3] - 1, np.nan),
        probability_BN=np.where(table[5] > 0, table[5] - 1, np.nan) if table[5].any() else None,
        matched_BN=table[6] > 1 if table[6].any() else None,
        answer_BN=table[7].astype(np.uint32),
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


def check_verified(run: Run, what: str, valid_BN: np.ndarray) -> None:
    """Refuses to go on where too many answers have no verdict.

    Args:
      what: was judged, for the message.
      valid_BN: bool, of the answers that were sent.

    Raises:
      JudgeUnavailable: shows the share, its limit, and what the verifier complained about.
    """
    limit = run.config.verifier.max_unjudged_fraction
    share = 1 - np.mean(valid_BN)
    errors = run.verifier.errors()
    if share > limit:
        raise JudgeUnavailable(
            f"{what}: {share:.1%} of the answers got no verdict, and "
            f"config.verifier.max_unjudged_fraction is {limit:.1%}. "
            f"{errors or 'Other processes may know why'}. Mend the judge and start the same "
            "command again: it goes on from the last checkpoint."
        )
    if errors:
        logging.warning("%s: %.2f%% of the answers unverified; %s", what, 100 * share, errors)
