"""One step of the method as pure functions: sample, verify, reward, learn."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from speciarl_jax.models.prompt_batch import PromptBatch
from speciarl_jax.rollout.types import Rollout, Samples, UpdateBatch
from speciarl_jax.runtime.batching import split_strided
from speciarl_jax.training.state import TrainState
from speciarl_jax.verifiers.category import Category

# Among the metrics of a step: its `Samples`.
SAMPLES = "samples"


def whole_groups(valid_BN: jax.Array, min_judged_fraction: float) -> jax.Array:
    """Answers that take part: those with a verdict, if enough of their group have one.

    The bar is the best answer of the group. One without a verdict might have set it, so at 1 a
    group with any such answer leaves the update.

    Args:
      valid_BN: bool, whether a verdict exists.
      min_judged_fraction: share of a group that must have one, in [0, 1].
    """
    needed = math.ceil(min_judged_fraction * valid_BN.shape[1] - 1e-6)
    return valid_BN & (jnp.sum(valid_BN, axis=1, keepdims=True) >= needed)


def learn(
    state: TrainState,
    base: nnx.State,
    batch: PromptBatch,
    features_BMD: jax.Array,
    rollout: Rollout,
    category_BN: jax.Array,
    valid_BN: jax.Array,
    *,
    reward: Callable[[jax.Array, jax.Array], jax.Array],
    advantages: Callable[[jax.Array, jax.Array], jax.Array],
    update: Callable[..., tuple[TrainState, dict[str, jax.Array]]],
    mini_batches: int,
    eos_id: int,
    noise: Callable[[jax.Array, jax.Array, jax.Array], jax.Array] | None = None,
    min_judged_fraction: float = 0.0,
    ppo_epochs: int = 1,
    overlong: Callable[[jax.Array], jax.Array] | None = None,
    old_logp: Callable[..., jax.Array] | None = None,
    divergence: Callable[..., jax.Array] | None = None,
    shown: int = 0,
) -> tuple[TrainState, dict[str, Any]]:
    """Rewards the answers, compares them within their group, and updates the policy.

    Args:
      state: what changes.
      base: frozen weights.
      batch: images and prompts.
      features_BMD: of the images.
      rollout: the answers.
      category_BN: their categories.
      valid_BN: whether a verdict exists.
      reward: (category_BN, valid_BN) -> reward_BN.
      advantages: (reward_BN, valid_BN) -> advantage_BN.
      update: (state, base, UpdateBatch) -> (state, metrics).
      mini_batches: optimizer updates a pass; must divide B.
      eos_id: token that ends an answer.
      noise: (category_BN, image_id_B, step) -> category_BN that are rewarded instead, for the
        study of verifiers that err (`verify.label_noise`).
      min_judged_fraction: as for `whole_groups`.
      ppo_epochs: how often the step goes through its answers.
      overlong: length_BN -> what long answers lose of their reward, or None.
      old_logp: (lora, base, batch, features, rollout) -> the trainer's log-probabilities before the
        first update, or None if updates do not need them (`update.update`).
      divergence: the same and `old_logp`'s result, or the sampler's -> what answers lose for their
        divergence from the reference, or None.
      shown: images of which the answers are handed back; see `SAMPLES`.

    Returns:
      The new state and float32 metrics named `stage/name`; those of the updates are averaged, but
      for `update/sampler_*`, which are the first update's: later the policy has moved. With `shown`
      there are `Samples` under `SAMPLES` as well.

    Raises:
      ValueError: `mini_batches` does not divide B.
    """
    taken_BN = whole_groups(valid_BN, min_judged_fraction)
    rewarded_BN = noise(category_BN, batch.image_id_B, state.step) if noise else category_BN
    reward_BN = reward(rewarded_BN, taken_BN)
    costs = {}
    if overlong is not None:
        costs["overlong_penalty"] = overlong(jnp.sum(rollout.mask_BNT, axis=-1))
    answers = state.lora, base, batch, features_BMD, rollout
    old_logp_BNT = old_logp(*answers) if old_logp is not None else None
    if divergence is not None:
        known = old_logp_BNT is not None
        costs["kl_penalty"] = divergence(*answers, old_logp_BNT if known else rollout.logp_BNT)
    reward_BN = reward_BN - sum(costs.values())
    advantage_BN = advantages(reward_BN, taken_BN)
    whole = UpdateBatch(
        prompt=batch,
        features_BMD=features_BMD,
        rollout=rollout,
        advantage_BN=advantage_BN,
        valid_BN=taken_BN,
        old_logp_BNT=old_logp_BNT,
    )
    state, metrics = run_updates(state, base, whole, update, mini_batches, ppo_epochs)
    summary = describe(
        rollout, category_BN, valid_BN, taken_BN, reward_BN, advantage_BN, batch.weight_B, eos_id
    )
    if noise:
        moved_BN = valid_BN & (rewarded_BN != category_BN)
        summary["verify/noise"] = jnp.sum(moved_BN) / jnp.maximum(jnp.sum(valid_BN), 1)
    taken = jnp.maximum(jnp.sum(taken_BN), 1)
    for name, cost_BN in costs.items():
        summary[f"reward/{name}"] = jnp.sum(jnp.where(taken_BN, cost_BN, 0.0)) / taken
    if shown:
        # As every step returns them, the program is the same whether anybody looks at them or not.
        summary[SAMPLES] = samples_of(
            batch, rollout, category_BN, valid_BN, jnp.where(taken_BN, reward_BN, jnp.nan), shown
        )
    return state, metrics | summary


def samples_of(
    batch: PromptBatch,
    rollout: Rollout,
    category_BN: jax.Array,
    valid_BN: jax.Array,
    reward_BN: jax.Array,
    shown: int,
) -> Samples:
    """The first `shown` images of a batch, or all if there are fewer."""
    whole = Samples(
        image_id_K=batch.image_id_B,
        label_index_K=batch.label_index_B,
        weight_K=batch.weight_B,
        tokens_KNT=rollout.tokens_BNT,
        mask_KNT=rollout.mask_BNT,
        category_KN=category_BN,
        valid_KN=valid_BN,
        reward_KN=reward_BN,
    )
    return jax.tree.map(lambda x: x[:shown], whole)


def run_updates(
    state: TrainState,
    base: nnx.State,
    whole: UpdateBatch,
    update: Callable[..., tuple[TrainState, dict[str, jax.Array]]],
    mini_batches: int,
    ppo_epochs: int,
) -> tuple[TrainState, dict[str, jax.Array]]:
    """Updates on every mini-batch in turn, and so `ppo_epochs` times; see `learn`.

    Raises:
      ValueError: `mini_batches` does not divide B.
    """
    images = whole.advantage_BN.shape[0]
    if images % mini_batches:
        raise ValueError(
            f"config.train.batch_size {images} cannot be cut into {mini_batches} mini-batches"
        )
    parts = jax.tree.map(lambda x: split_strided(x, mini_batches), whole)

    def one_pass(state, _):
        return jax.lax.scan(lambda state, part: update(state, base, part), state, parts)

    if ppo_epochs == 1:
        state, metrics = one_pass(state, None)
    else:
        state, metrics = jax.lax.scan(one_pass, state, length=ppo_epochs)
        metrics = jax.tree.map(lambda x: x.reshape(-1), metrics)
    metrics = {
        name: x[0] if name.startswith("update/sampler_") else jnp.mean(x)
        for name, x in metrics.items()
    }
    metrics["update/skipped_in_a_row"] = state.skipped.astype(jnp.float32)
    return state, metrics


def describe(
    rollout: Rollout,
    category_BN: jax.Array,
    valid_BN: jax.Array,
    taken_BN: jax.Array,
    reward_BN: jax.Array,
    advantage_BN: jax.Array,
    weight_B: jax.Array,
    eos_id: int,
) -> dict[str, jax.Array]:
    """What the answers of a step were like; means over the answers that have a verdict.

    The mean reward is over the answers that take part, `taken_BN`. Truncated are answers of T
    tokens whose last is not `eos_id`.
    """
    judged = jnp.sum(valid_BN)
    count = jnp.maximum(judged, 1)
    asked = jnp.maximum(jnp.sum(weight_B) * category_BN.shape[1], 1)

    def mean(x_BN):
        return jnp.sum(jnp.where(valid_BN, x_BN, 0)) / count

    length_BN = jnp.sum(rollout.mask_BNT, axis=-1)
    flat_B = jnp.all(advantage_BN == 0, axis=1) & (weight_B > 0)
    left_out_B = ~jnp.any(taken_BN, axis=1) & (weight_B > 0)
    shares = {f"verify/{c.name.lower()}": mean(category_BN == c) for c in Category}
    return shares | {
        "verify/unjudged": 1 - judged / asked,
        "verify/groups_dropped": jnp.sum(left_out_B) / jnp.maximum(jnp.sum(weight_B), 1),
        "reward/mean": jnp.sum(reward_BN * taken_BN) / jnp.maximum(jnp.sum(taken_BN), 1),
        "reward/zero_std_groups": jnp.sum(flat_B) / jnp.maximum(jnp.sum(weight_B), 1),
        "data/skipped": jnp.sum(weight_B == 0, dtype=jnp.float32),
        "rollout/completion_length": mean(length_BN),
        "rollout/truncated": mean(
            rollout.mask_BNT[..., -1] & (rollout.tokens_BNT[..., -1] != eos_id)
        ),
    }
