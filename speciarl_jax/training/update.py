"""One functional policy update: gradients over micro-batches, then one optimizer step."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from speciarl_jax.experiment.algorithm import Algorithm
from speciarl_jax.rl.losses import importance, rank, token_weights
from speciarl_jax.rl.optimizer import Optimizer
from speciarl_jax.rollout import length_buckets, logprobs, slot_compaction
from speciarl_jax.rollout.types import UpdateBatch
from speciarl_jax.runtime.batching import split_strided
from speciarl_jax.training.state import TrainState

Metrics = dict[str, jax.Array]


def update(
    state: TrainState,
    base: nnx.State,
    batch: UpdateBatch,
    *,
    algorithm: Algorithm,
    graphdef: nnx.GraphDef,
    banned_V: jax.Array,
    optimizer: Optimizer,
) -> tuple[TrainState, Metrics]:
    """Takes one optimizer step on the policy loss plus the KL to the reference policy.

    The reference policy is the same weights with LoRA off, unless the batch brings the
    log-probabilities of one that moves. Token weights hold the denominator of
    the whole batch before it is split, so the gradient does not depend on the micro-batches.

    Args:
      base: the frozen weights; read, never donated.
      batch: rollouts with their advantages. With `old_logprobs` "recomputed", `old_logp_BNT` may be
        None: then the policy of this very update is the old one, which is right for the only update
        of a step.
      graphdef: joins `state.lora` and `base` into the policy.
      banned_V: bool, tokens that sampling banned.

    Returns:
      The new state and float32 metrics, which are means over the tokens that take part. If the
      gradient is not finite, only `step` and `skipped` change, and `update/skipped` is 1.
    """
    parts = algorithm.micro_batches
    mask_BNT = batch.rollout.mask_BNT & batch.valid_BN[..., None]
    # For the loss, and for the metrics, which mean the same whatever the loss weighs.
    weights = [algorithm.token_weights(mask_BNT), token_weights.token_mean(mask_BNT)]
    if algorithm.kl_unlabelled:
        unlabelled_BNT = batch.rollout.mask_BNT & batch.prompt.unlabelled_B[:, None, None]
        weights.append(token_weights.token_mean(unlabelled_BNT))

    options = {"algorithm": algorithm, "banned_V": banned_V}
    options["kl_weight"] = algorithm.kl_weight(state.step)
    if algorithm.rank_coefficient:
        options["num_ranked"] = rank.num_ranked(batch.advantage_BN, batch.valid_BN)

    def loss_of(lora, *part):
        policy = nnx.merge(graphdef, lora, base)
        return _loss(policy, *part, **options)

    # The images themselves are not read again, unless the encoder learns: their features are there.
    trains_encoder = nnx.merge(graphdef, state.lora, base).trains_encoder
    prompt = batch.prompt if trains_encoder else batch.prompt.without_images()
    whole = batch.replace(prompt=prompt), *weights
    if min(parts, algorithm.num_length_buckets) > 1:
        order_SR = length_buckets.by_length(batch.rollout.mask_BNT, parts)
        whole = jax.tree.map(lambda x: slot_compaction.take_images(x, order_SR), whole)
    split = jax.tree.map(lambda x: split_strided(x, parts), whole)
    grads, metrics = _sum_over_parts(loss_of, state.lora, split, algorithm.num_length_buckets)
    if algorithm.kl_in_loss and algorithm.kl_schedule is not None:
        metrics["kl_coefficient"] = options["kl_weight"]
    return _apply(state, grads, metrics, optimizer)


def _loss(
    policy,
    part: UpdateBatch,
    weight_BNT,
    mean_BNT,
    unlabelled_BNT=None,
    *,
    algorithm,
    banned_V,
    kl_weight,
    num_ranked=None,
):
    """Aggregates the losses of the tokens of some images, and their metrics.

    `weight_BNT` aggregates the loss, `mean_BNT` metrics, and `unlabelled_BNT` the KL about images
    without a label. `num_ranked` counts the groups of the whole batch that have pairs to rank.
    """
    given_BNT = part.reference_logp_BNT
    needs_reference = algorithm.needs_reference and given_BNT is None
    features_BMD, frozen_BMD = part.features_BMD, None
    if policy.trains_encoder:
        images = part.prompt.patches_BSC, part.prompt.layout
        features_BMD = policy.encode_images(*images)
        frozen_BMD = policy.encode_images(*images, use_lora=False) if needs_reference else None
    scores = logprobs.answer_logprobs(
        policy,
        part.prompt,
        features_BMD,
        part.rollout.tokens_BNT,
        banned_V=banned_V,
        temperature=algorithm.temperature,
        chunk_size=algorithm.logprob_chunk,
        remat=algorithm.remat,
        frozen_head=True,
        entropy_gradient=bool(algorithm.entropy_coefficient),
        reference=needs_reference,
        reference_features_BMD=frozen_BMD,
    )
    mask_BNT, logp_BNT, sampler_BNT = mean_BNT > 0, scores.logp_BNT, part.rollout.logp_BNT
    trainer_BNT = part.old_logp_BNT
    if trainer_BNT is None:
        trainer_BNT = jax.lax.stop_gradient(logp_BNT)
    old_BNT = trainer_BNT if algorithm.old_logprobs == "recomputed" else sampler_BNT
    loss_BNT, metrics = algorithm.policy_loss(logp_BNT, old_BNT, part.advantage_BN, mask_BNT)
    metrics |= {"entropy": scores.entropy_BNT}
    metrics |= importance.mismatch(trainer_BNT, sampler_BNT, mask_BNT)
    gap = trainer_BNT, sampler_BNT, mask_BNT
    corrected_BNT = weight_BNT
    if algorithm.tis_cap:
        cap, level = algorithm.tis_cap, algorithm.tis_level
        tis_BNT = importance.truncated_weights(*gap, cap=cap, level=level)
        corrected_BNT = weight_BNT * tis_BNT
        metrics |= {"importance": tis_BNT, "importance_capped": tis_BNT >= cap}
    if algorithm.kept is not None:
        # The denominator in `weight_BNT` still counts what is left out.
        kept_BNT = algorithm.kept(*gap)
        corrected_BNT = jnp.where(kept_BNT, corrected_BNT, 0.0)
        metrics["mismatch_masked"] = mask_BNT & ~kept_BNT
    loss = jnp.sum(corrected_BNT * loss_BNT)
    if algorithm.entropy_coefficient:
        loss -= algorithm.entropy_coefficient * jnp.sum(weight_BNT * scores.entropy_BNT)

    def kl_where(taken_BNT):
        reference_BNT = scores.reference_BNT if given_BNT is None else given_BNT
        return algorithm.kl(
            jnp.where(taken_BNT, logp_BNT, 0), jnp.where(taken_BNT, reference_BNT, 0)
        )

    if algorithm.kl_in_loss:
        metrics["kl"] = kl_where(mask_BNT)
        loss += kl_weight * jnp.sum(weight_BNT * metrics["kl"])
    metrics = {name: jnp.sum(mean_BNT * value_BNT) for name, value_BNT in metrics.items()}
    if num_ranked is not None:
        ranked_B = rank.loss(logp_BNT, part.rollout.mask_BNT, part.advantage_BN, part.valid_BN)
        metrics["rank_loss"] = jnp.sum(ranked_B) / num_ranked
        loss += algorithm.rank_coefficient * metrics["rank_loss"]
    if unlabelled_BNT is not None:
        kl = jnp.sum(unlabelled_BNT * kl_where(unlabelled_BNT > 0))
        metrics["kl_unlabelled"] = kl
        loss += algorithm.kl_unlabelled * kl
    return loss, {"loss": loss, **metrics}


def _sum_over_parts(loss_of, lora, parts, num_length_buckets: int):
    """Adds gradients and metrics of `loss_of(lora, *part)` over the leading axis of `parts`."""
    gradient = jax.value_and_grad(loss_of, has_aux=True)

    def accumulate(total, part):
        batch, *weights = part

        def narrow(arrays):
            cut, weights = arrays
            return gradient(lora, batch.replace(**cut), *weights)

        names = "rollout", "old_logp_BNT", "reference_logp_BNT"
        arrays = {name: getattr(batch, name) for name in names}, weights
        mask_BNT = batch.rollout.mask_BNT
        (_, metrics), grads = length_buckets.at_narrowest(
            narrow, arrays, mask_BNT, num_length_buckets
        )
        return jax.tree.map(jnp.add, total, (grads, metrics)), None

    first = jax.tree.map(lambda x: x[0], parts)
    (_, metrics), grads = jax.eval_shape(lambda *part: gradient(lora, *part), *first)
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), (grads, metrics))
    return jax.lax.scan(accumulate, zeros, parts)[0]


def _apply(state: TrainState, grads, metrics: Metrics, optimizer: Optimizer):
    """Takes one optimizer step; leaves it out if the gradient or the loss is not finite."""
    norm = optax.tree.norm(grads)
    finite = jnp.isfinite(norm) & jnp.isfinite(metrics["loss"])
    rate = optimizer.learning_rate(state.opt_state)
    updates, opt_state = optimizer.update(grads, state.opt_state, state.lora)
    lora = optax.apply_updates(state.lora, updates)
    keep = functools.partial(jax.tree.map, lambda new, old: jnp.where(finite, new, old))
    state = state.replace(
        step=state.step + 1,
        lora=keep(lora, state.lora),
        opt_state=keep(opt_state, state.opt_state),
        skipped=jnp.where(finite, 0, state.skipped + 1),
    )
    metrics = {f"update/{name}": value for name, value in metrics.items()}
    metrics["update/grad_norm"] = norm
    metrics["update/grad_norm_clipped"] = jnp.minimum(norm, optimizer.max_grad_norm)
    metrics["update/learning_rate"] = rate
    metrics["update/skipped"] = (~finite).astype(jnp.float32)
    return state, metrics


def update_on_all(
    state: TrainState, base: nnx.State, batch: UpdateBatch, update_once: Any, algorithm: Algorithm
) -> tuple[TrainState, Metrics]:
    """Updates on every mini-batch in turn, `ppo_epochs` times.

    Args:
      update_once: `update` but for (state, base, batch).

    Returns:
      The new state and the metrics' means over the updates, but for `update/sampler_*`, which are
      the first update's: after it the policy has moved.
    """
    split = jax.tree.map(lambda x: split_strided(x, algorithm.mini_batches), batch)

    def epoch(state, _):
        return jax.lax.scan(lambda state, part: update_once(state, base, part), state, split)

    if algorithm.ppo_epochs == 1:
        state, metrics = epoch(state, None)
    else:
        state, metrics = jax.lax.scan(epoch, state, length=algorithm.ppo_epochs)
        metrics = jax.tree.map(lambda x: x.reshape(-1), metrics)
    metrics = {
        name: x[0] if name.startswith("update/sampler_") else jnp.mean(x)
        for name, x in metrics.items()
    }
    metrics["update/skipped_in_a_row"] = state.skipped.astype(jnp.float32)
    return state, metrics
