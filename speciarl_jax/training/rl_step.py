"""From judged groups to an update batch: reward, advantage, and what a step reports."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from speciarl_jax.experiment.algorithm import Algorithm
from speciarl_jax.experiment.in_graph_verification import most_common
from speciarl_jax.rollout.types import Groups, Samples, UpdateBatch, is_end
from speciarl_jax.verifiers.category import Category

# The name of a step's `Samples` among its metrics.
SAMPLES = "samples"
Metrics = dict[str, Any]


def judged_groups(valid_BN: jax.Array, min_judged_fraction: float) -> jax.Array:
    """Selects the rollouts that take part: those with a verdict, if enough of their group have one.

    The bar is the best rollout of the group. One without a verdict might have set it, so at 1 a
    group with any such rollout leaves the update.

    Args:
      valid_BN: bool, whether a verdict exists.
      min_judged_fraction: share of a group that must have one, in [0, 1].
    """
    needed = math.ceil(min_judged_fraction * valid_BN.shape[1] - 1e-6)
    return valid_BN & (jnp.sum(valid_BN, axis=1, keepdims=True) >= needed)


class Rewarded(NamedTuple):
    """Holds the rewards of groups of rollouts.

    Attributes:
      reward_BN: float32, 0 where it is not finite.
      taken_BN: bool, rollouts that take part in the update.
      category_BN: int32, the categories that were rewarded; with noise they are not the verdicts.
      not_finite_BN: bool, rollouts with a verdict whose reward is not finite.
    """

    reward_BN: jax.Array
    taken_BN: jax.Array
    category_BN: jax.Array
    not_finite_BN: jax.Array

    def less(self, costs_BN: Any, min_judged_fraction: float) -> "Rewarded":
        """Returns the rewards less costs; one that is no longer finite counts as unjudged."""
        reward_BN = self.reward_BN - costs_BN
        bad_BN = self.taken_BN & ~jnp.isfinite(reward_BN)
        return self._replace(
            reward_BN=jnp.where(jnp.isfinite(reward_BN), reward_BN, 0.0),
            taken_BN=judged_groups(self.taken_BN & ~bad_BN, min_judged_fraction),
            not_finite_BN=self.not_finite_BN | bad_BN,
        )

    def share_not_finite(self, valid_BN: jax.Array) -> jax.Array:
        """Computes the share of the rollouts with a verdict whose reward is not finite."""
        return jnp.sum(self.not_finite_BN) / jnp.maximum(jnp.sum(valid_BN), 1)


def reward_groups(groups: Groups, step: jax.Array, algorithm: Algorithm) -> Rewarded:
    """Rewards the verdicts; lengths and divergences are not counted here.

    A reward that is not finite counts as if there were no verdict.

    Args:
      step: int32, number of finished updates; seeds the noise.
      algorithm: reward, noise and the share of a group that must be judged.
    """
    taken_BN = judged_groups(groups.valid_BN, algorithm.min_judged_fraction)
    category_BN = groups.category_BN
    if algorithm.noise is not None:
        category_BN = algorithm.noise(category_BN, groups.prompt.image_id_B, step)
    reward_BN = algorithm.reward(category_BN, taken_BN)
    if algorithm.information is not None:
        credit_BN = algorithm.information(groups.base_rate_BN)
        reward_BN = jnp.where(reward_BN > 0, reward_BN * credit_BN, reward_BN)
    found = Rewarded(reward_BN, taken_BN, category_BN, jnp.zeros_like(taken_BN))
    return found.less(0.0, algorithm.min_judged_fraction)


def make_update_batch(
    lora: nnx.State,
    base: nnx.State,
    groups: Groups,
    step: jax.Array,
    *,
    algorithm: Algorithm,
    score: Callable[..., jax.Array],
    end_ids: tuple[int, ...],
    reference: nnx.State | None = None,
) -> tuple[UpdateBatch, Metrics]:
    """Rewards the rollouts and compares them within their group.

    Args:
      lora: adapters before the update.
      step: int32, number of finished updates.
      score: `rescore.answer_logp` but for (lora, base, prompt, features, rollout) and whose they
        are (`use_lora`, `sampled`).
      reference: adapters of the reference policy; None for the base.

    Returns:
      The batch, and metrics named `stage/name`. With `num_logged_images` there are `Samples` under
      `SAMPLES` as well.
    """
    rollout = groups.rollout
    rewarded = reward_groups(groups, step, algorithm)
    scored = base, groups.prompt, groups.features_BMD, rollout
    old_logp_BNT = score(lora, *scored) if algorithm.rescores else None
    reference_BNT = None
    if reference is not None:
        reference_BNT = score(reference, *scored, sampled=False)
    elif algorithm.kl_in_reward:
        reference_BNT = score(lora, *scored, use_lora=False, sampled=False)
    costs = {}
    if algorithm.brier is not None:
        claimed = rollout.logp_BNT, rollout.mask_BNT
        costs["brier_penalty"] = algorithm.brier(*claimed, rewarded.reward_BN)
    if algorithm.overlong is not None:
        costs["overlong_penalty"] = algorithm.overlong(jnp.sum(rollout.mask_BNT, axis=-1))
    if algorithm.kl_in_reward:
        logp_BNT = rollout.logp_BNT if old_logp_BNT is None else old_logp_BNT
        kl_BNT = algorithm.kl(
            jnp.where(rollout.mask_BNT, logp_BNT, 0), jnp.where(rollout.mask_BNT, reference_BNT, 0)
        )
        costs["kl_penalty"] = algorithm.kl_weight(step) * jnp.sum(kl_BNT, axis=-1)
    if costs:
        rewarded = rewarded.less(sum(costs.values()), algorithm.min_judged_fraction)
    reward_BN, taken_BN = rewarded.reward_BN, rewarded.taken_BN
    advantage_BN = algorithm.advantages(reward_BN, taken_BN)
    batch = UpdateBatch(
        prompt=groups.prompt,
        features_BMD=groups.features_BMD,
        rollout=rollout,
        advantage_BN=advantage_BN,
        valid_BN=taken_BN,
        old_logp_BNT=old_logp_BNT,
        reference_logp_BNT=reference_BNT if algorithm.needs_reference else None,
    )
    metrics = describe(groups, taken_BN, reward_BN, advantage_BN, end_ids)
    metrics["reward/not_finite"] = rewarded.share_not_finite(groups.valid_BN)
    if groups.base_rate_BN is not None:
        right_BN = taken_BN & groups.prompt.labelled_B[:, None]
        right_BN &= rewarded.category_BN >= Category.GENERIC
        base_rate = jnp.sum(jnp.where(right_BN, groups.base_rate_BN, 0.0))
        metrics["reward/base_rate"] = base_rate / jnp.maximum(jnp.sum(right_BN), 1)
    if algorithm.noise is not None:
        moved_BN = groups.valid_BN & (rewarded.category_BN != groups.category_BN)
        metrics["verify/noise"] = jnp.sum(moved_BN) / jnp.maximum(jnp.sum(groups.valid_BN), 1)
    taken = jnp.maximum(jnp.sum(taken_BN), 1)
    for name, cost_BN in costs.items():
        metrics[f"reward/{name}"] = jnp.sum(jnp.where(taken_BN, cost_BN, 0.0)) / taken
    if algorithm.num_logged_images:
        # Every step returns them: the program is the same whether anybody looks at them or not.
        reward_BN = jnp.where(taken_BN, reward_BN, jnp.nan)
        metrics[SAMPLES] = samples_of(groups, reward_BN, algorithm.num_logged_images)
    return batch, metrics


def samples_of(groups: Groups, reward_BN: jax.Array, count: int) -> Samples:
    """Takes the rollouts of the first `count` images of a batch, or of all if there are fewer."""
    whole = Samples(
        image_id_K=groups.prompt.image_id_B,
        label_index_K=groups.prompt.label_index_B,
        weight_K=groups.prompt.weight_B,
        tokens_KNT=groups.rollout.tokens_BNT,
        mask_KNT=groups.rollout.mask_BNT,
        category_KN=groups.category_BN,
        valid_KN=groups.valid_BN,
        reward_KN=reward_BN,
    )
    return jax.tree.map(lambda x: x[:count], whole)


def describe(
    groups: Groups,
    taken_BN: jax.Array,
    reward_BN: jax.Array,
    advantage_BN: jax.Array,
    end_ids: tuple[int, ...],
) -> Metrics:
    """Describes the rollouts of a step; means are over the rollouts that have a verdict.

    Images without a label do not count, whatever their rollouts agree on. The mean reward is over
    the rollouts that take part. Truncated are completions of T tokens
    whose last is none of `end_ids`.

    Args:
      taken_BN: bool, rollouts that take part.
      reward_BN: float32.
      advantage_BN: float32.
    """
    rollout, labelled_B = groups.rollout, groups.prompt.labelled_B
    valid_BN, taken_BN = (x & labelled_B[:, None] for x in (groups.valid_BN, taken_BN))
    images, judged = jnp.maximum(jnp.sum(labelled_B), 1), jnp.sum(valid_BN)

    def mean(x_BN):
        return jnp.sum(jnp.where(valid_BN, x_BN, 0)) / jnp.maximum(judged, 1)

    flat_B = jnp.all(advantage_BN == 0, axis=1) & labelled_B
    dropped_B = ~jnp.any(taken_BN, axis=1) & labelled_B
    shares = {f"verify/{c.name.lower()}": mean(groups.category_BN == c) for c in Category}
    return shares | {
        "verify/unjudged": unjudged(valid_BN, labelled_B),
        "verify/groups_dropped": jnp.sum(dropped_B) / images,
        "reward/mean": jnp.sum(reward_BN * taken_BN) / jnp.maximum(jnp.sum(taken_BN), 1),
        "reward/zero_std_groups": jnp.sum(flat_B) / images,
        "data/skipped": jnp.sum(groups.prompt.weight_B == 0, dtype=jnp.float32),
        "data/most_common_label": most_common(groups.prompt.label_index_B, labelled_B),
        "rollout/completion_length": mean(jnp.sum(rollout.mask_BNT, axis=-1)),
        "rollout/truncated": mean(
            rollout.mask_BNT[..., -1] & ~is_end(rollout.tokens_BNT[..., -1], end_ids)
        ),
    }


def unjudged(valid_BN: jax.Array, labelled_B: jax.Array) -> jax.Array:
    """Computes the share of the rollouts of images with a label that have no verdict."""
    rollouts = jnp.maximum(jnp.sum(labelled_B) * valid_BN.shape[1], 1)
    return 1 - jnp.sum(valid_BN) / rollouts
