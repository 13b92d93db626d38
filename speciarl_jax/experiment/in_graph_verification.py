"""Has rollouts judged inside the program, and describes how the verdicts came about."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from speciarl_jax.experiment import extension_points
from speciarl_jax.models.prompt_batch import PromptBatch
from speciarl_jax.rollout.types import Rollout
from speciarl_jax.verifiers import group_consensus, parsing_on_device
from speciarl_jax.verifiers.base import InGraphVerdicts, Verdicts
from speciarl_jax.verifiers.category import Category


def verify(verifier: Any, batch: PromptBatch, rollout: Rollout) -> InGraphVerdicts:
    """Judges rollouts by an in-graph verifier; those of a row without a label are not valid.

    A category that does not exist counts as no verdict.

    Raises:
      TypeError: the verifier returns something else than it must (`extension_points.verdicts`).
    """
    method = getattr(verifier, "verify_in_detail", verifier.verify)
    found = method(rollout.tokens_BNT, rollout.mask_BNT, batch.label_index_B)
    found = extension_points.verdicts(found, verifier, rollout.mask_BNT.shape[:2])
    real_B1 = batch.labelled_B[:, None]
    exists_BN = (found.category_BN >= min(Category)) & (found.category_BN <= max(Category))
    found = found._replace(
        category_BN=jnp.where(exists_BN, found.category_BN, int(Category.UNPARSED)),
        valid_BN=found.valid_BN & real_B1 & exists_BN,
    )
    if found.answer_BN is None:
        compare = jax.vmap(jax.vmap(parsing_on_device.text_hash))
        found = found._replace(answer_BN=compare(rollout.tokens_BNT, rollout.mask_BNT))
    if found.probability_BN is not None:
        found = found._replace(probability_BN=jnp.where(real_B1, found.probability_BN, jnp.nan))
    return found


def by_consensus(
    found: InGraphVerdicts, batch: PromptBatch, consensus: Callable[..., group_consensus.Agreed]
) -> tuple[InGraphVerdicts, dict[str, jax.Array]]:
    """Judges the rollouts of rows without a label by what their group agrees on.

    Args:
      found: of a verifier that judges for all labels; its other rows stay as they are.
      consensus: `group_consensus.verdicts` but for its options.

    Returns:
      The verdicts; and of the images without a label, the share on which the group agrees, the mean
      support of what it agrees on, and the share of all answers that are generic or better by it.
    """
    agreed = consensus(found.category_BNF, found.answer_BN)
    taken_B1 = batch.unlabelled_B[:, None]
    found = found._replace(
        category_BN=jnp.where(taken_B1, agreed.category_BN, found.category_BN),
        valid_BN=jnp.where(taken_B1, agreed.valid_BN, found.valid_BN),
    )
    images = jnp.maximum(jnp.sum(batch.unlabelled_B), 1)
    named_B = batch.unlabelled_B & agreed.valid_BN[:, 0]
    named = jnp.sum(named_B)
    right_BN = (agreed.category_BN >= Category.GENERIC) & named_B[:, None]
    answers = images * agreed.valid_BN.shape[1]
    return found, {
        "consensus/agreed": named / images,
        "consensus/support": jnp.sum(agreed.support_B * named_B) / jnp.maximum(named, 1),
        "consensus/right": jnp.sum(right_BN) / answers,
    }


def describe(found: InGraphVerdicts | Verdicts) -> dict[str, jax.Array]:
    """Computes metrics of how verdicts came about, as far as the verifier tells.

    Returns:
      Over the answers that a judge was asked about, the mean probability of the likeliest verdict,
      and the share where it was too low to count (or not finite); over all answers that have a
      verdict or should, the shares that a label tree decided and that it knows no name for; and the
      share of the answer that most completions give.
    """
    metrics, valid_BN = {}, found.valid_BN
    if found.answer_BN is not None:
        readable_BN = valid_BN & (found.answer_BN != 0)
        metrics["verify/most_common_answer"] = most_common(found.answer_BN, readable_BN)
    if found.probability_BN is not None:
        asked_BN = ~jnp.isnan(found.probability_BN)
        asked = jnp.maximum(jnp.sum(asked_BN), 1)
        sure = jnp.where(asked_BN, found.probability_BN, 0.0)
        metrics["verify/probability_mean"] = jnp.sum(sure) / asked
        metrics["verify/below_min_probability"] = jnp.sum(asked_BN & ~valid_BN) / asked
    if found.matched_BN is not None:
        judged = jnp.maximum(jnp.sum(valid_BN), 1)
        by_tree = jnp.sum(found.matched_BN & valid_BN) / judged
        metrics["verify/by_tree"] = by_tree
        metrics["verify/unmatched"] = jnp.sum(valid_BN & ~found.matched_BN) / judged
    return metrics


def most_common(values: jax.Array, counted: jax.Array) -> jax.Array:
    """Computes which share of the counted values equals the most common one of them.

    Args:
      values: integers of any shape.
      counted: bool, of the same shape.

    Returns:
      A float32 scalar; 0 where nothing counts.
    """
    values_X, counted_X = jnp.ravel(values), jnp.ravel(counted)
    order_X = jnp.lexsort((values_X, ~counted_X))
    values_X, counted_X = values_X[order_X], counted_X[order_X]
    place_X = jnp.arange(values_X.size)
    begins_X = jnp.concatenate([jnp.ones(1, bool), values_X[1:] != values_X[:-1]])
    begin_X = jax.lax.cummax(jnp.where(begins_X, place_X, 0))
    longest = jnp.max(jnp.where(counted_X, place_X - begin_X + 1, 0))
    return longest / jnp.maximum(jnp.sum(counted_X), 1)
