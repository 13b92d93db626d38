"""Has rollouts judged inside the program, and describes how the verdicts came about."""

from typing import Any

import jax
import jax.numpy as jnp

from speciarl_jax.models.prompt_batch import PromptBatch
from speciarl_jax.rollout.types import Rollout
from speciarl_jax.verifiers.base import InGraphVerdicts, Verdicts


def verify(verifier: Any, batch: PromptBatch, rollout: Rollout) -> InGraphVerdicts:
    """Judges rollouts by an in-graph verifier; a row that pads the batch is not valid."""
    method = getattr(verifier, "verify_in_detail", verifier.verify)
    found = InGraphVerdicts(*method(rollout.tokens_BNT, rollout.mask_BNT, batch.label_index_B))
    real_B1 = batch.weight_B[:, None] > 0
    found = found._replace(valid_BN=found.valid_BN & real_B1)
    if found.probability_BN is not None:
        found = found._replace(probability_BN=jnp.where(real_B1, found.probability_BN, jnp.nan))
    return found


def describe(found: InGraphVerdicts | Verdicts) -> dict[str, jax.Array]:
    """Computes metrics of how verdicts came about, as far as the verifier tells.

    Returns:
      Over the answers that a judge was asked about, the mean probability of the likeliest verdict,
      and the share where it was too low to count (or not finite); over all answers that have a
      verdict or should, the shares that a label tree decided and that it knows no name for.
    """
    metrics, valid_BN = {}, found.valid_BN
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
