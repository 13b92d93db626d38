"""One functional policy update: gradients over micro-batches, then one optimizer step."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from speciarl_jax.rl.losses import importance, kl
from speciarl_jax.rl.losses import token_weights as token_weights_lib
from speciarl_jax.rollout import length_buckets, logprobs, slot_compaction
from speciarl_jax.rollout.types import UpdateBatch
from speciarl_jax.runtime.batching import split_strided
from speciarl_jax.training.state import TrainState

# (logp_BNT, old_logp_BNT, advantage_BN, weight_BNT) -> (loss, metrics); see `losses/`.
PolicyLoss = Callable[..., tuple[jax.Array, dict[str, jax.Array]]]


def update(
    state: TrainState,
    base: nnx.State,
    batch: UpdateBatch,
    *,
    graphdef: nnx.GraphDef,
    optimizer: optax.GradientTransformation,
    policy_loss: PolicyLoss,
    token_weights: Callable[[jax.Array], jax.Array],
    banned_V: jax.Array,
    kl_coefficient: float,
    temperature: jax.Array | float,
    micro_batches: int,
    logprob_chunk: int,
    remat: str,
    kl_estimator: Callable[[jax.Array, jax.Array], jax.Array] = kl.k3,
    old_logprobs: str = "rollout",
    tis_cap: float = 0.0,
    num_length_buckets: int = 1,
) -> tuple[TrainState, dict[str, jax.Array]]:
    """Policy loss plus `kl_coefficient` times the divergence from the reference, which is the same
    weights with LoRA off.

    The weights of the tokens hold the whole batch's denominator before the batch is split, so the
    gradient does not depend on `micro_batches`.

    Args:
      state: what changes.
      base: the frozen weights; read, never donated.
      batch: answers with their advantages.
      graphdef: joins `state.lora` and `base` into the policy.
      optimizer: of the adapters.
      policy_loss: from `losses/`.
      token_weights: from `losses.token_weights`.
      banned_V: bool, what sampling banned.
      kl_coefficient: 0 leaves the reference pass out.
      temperature: the answers were sampled at.
      micro_batches: parts the images are cut into; must divide B.
      logprob_chunk: answer positions a call of the head.
      remat: what the backward pass computes again of the layers, a key of `decoder.REMAT`.
      kl_estimator: from `losses.kl`.
      old_logprobs: one of `OLD_LOGPROBS`. "recomputed" takes `batch.old_logp_BNT`, or, where that
        is None, the policy of this very update: right for the only update of a step, and free.
      tis_cap: with "recomputed", bound of the truncated importance weight that corrects for the
        sampler (`losses.importance`); 0 leaves it out.
      num_length_buckets: how many widths a micro-batch is compiled for (`rollout.widths`); above 1,
        images with answers of like length share one.

    Returns:
      The new state and float32 metrics, which are means over the tokens that take part. If the
      gradient is not finite, only `step` and `skipped` change, and `update/skipped` is 1.

    Raises:
      ValueError: `micro_batches` does not divide the images.
    """
    images = batch.advantage_BN.shape[0]
    if images % micro_batches:
        raise ValueError(
            f"{images} images cannot be cut into {micro_batches} micro-batches of equal size; "
            "choose config.train.micro_batches that divides config.train.batch_size"
        )
    taken_BNT = batch.rollout.mask_BNT & batch.valid_BN[..., None]
    # For the loss, and for the metrics, which mean the same whatever the loss weighs.
    weights = token_weights(taken_BNT), token_weights_lib.token_mean(taken_BNT)
    loss = functools.partial(
        _loss,
        score=functools.partial(
            logprobs.answer_logprobs,
            banned_V=banned_V,
            temperature=temperature,
            chunk_size=logprob_chunk,
            remat=remat,
            frozen_head=True,
        ),
        policy_loss=policy_loss,
        kl_coefficient=kl_coefficient,
        kl_estimator=kl_estimator,
        old_logprobs=old_logprobs,
        tis_cap=tis_cap,
    )

    def loss_of(lora, *part):
        return loss(nnx.merge(graphdef, lora, base), *part)

    # Nothing below looks at the images again.
    bare = batch.prompt.without_images()
    whole = batch.replace(prompt=bare), *weights
    if min(micro_batches, num_length_buckets) > 1:
        order_SR = length_buckets.by_length(batch.rollout.mask_BNT, micro_batches)
        whole = jax.tree.map(lambda x: slot_compaction.take_images(x, order_SR), whole)
    parts = jax.tree.map(lambda x: split_strided(x, micro_batches), whole)
    grads, metrics = _sum_over_parts(loss_of, state.lora, parts, num_length_buckets)
    return _step(state, grads, metrics, optimizer)


def _loss(
    policy,
    part: UpdateBatch,
    weight_BNT,
    mean_BNT,
    *,
    score,
    policy_loss,
    kl_coefficient,
    kl_estimator,
    old_logprobs,
    tis_cap,
):
    """Loss and metrics of some images: policy loss, and KL to the policy with LoRA off."""

    logp_BNT, entropy_BNT, reference_BNT = score(
        policy,
        part.prompt,
        part.features_BMD,
        part.rollout.tokens_BNT,
        reference=bool(kl_coefficient),
    )
    trainer_BNT, sampler_BNT = part.old_logp_BNT, part.rollout.logp_BNT
    if trainer_BNT is None:
        trainer_BNT = jax.lax.stop_gradient(logp_BNT)
    old_BNT = trainer_BNT if old_logprobs == "recomputed" else sampler_BNT
    corrected_BNT = weight_BNT
    if tis_cap:
        importance_BNT = importance.truncated_weight(trainer_BNT, sampler_BNT, cap=tis_cap)
        corrected_BNT = jnp.where(weight_BNT > 0, weight_BNT * importance_BNT, 0.0)
    loss, _ = policy_loss(logp_BNT, old_BNT, part.advantage_BN, corrected_BNT)
    _, metrics = policy_loss(logp_BNT, old_BNT, part.advantage_BN, mean_BNT)
    metrics["entropy"] = jnp.sum(mean_BNT * entropy_BNT)
    metrics |= importance.mismatch(trainer_BNT, sampler_BNT, mean_BNT)
    if tis_cap:
        capped_BNT = jnp.where(mean_BNT > 0, importance_BNT, 0.0)
        metrics["importance"] = jnp.sum(mean_BNT * capped_BNT)
        metrics["importance_capped"] = jnp.sum(mean_BNT * (capped_BNT >= tis_cap))
    if kl_coefficient:
        taken_BNT = weight_BNT > 0
        kl_BNT = kl_estimator(
            jnp.where(taken_BNT, logp_BNT, 0), jnp.where(taken_BNT, reference_BNT, 0)
        )
        metrics["kl"] = jnp.sum(mean_BNT * kl_BNT)
        loss += kl_coefficient * jnp.sum(weight_BNT * kl_BNT)
    return loss, {"loss": loss, **metrics}


def _sum_over_parts(loss_of, lora, parts, num_length_buckets):
    """Gradients and metrics of `loss_of(lora, *part)`, added over the leading axis of `parts`."""
    gradient = jax.value_and_grad(loss_of, has_aux=True)

    def accumulate(total, part):
        batch, *weights = part

        def narrow(arrays):
            rollout, old_logp_BNT, *weights = arrays
            return gradient(
                lora, batch.replace(rollout=rollout, old_logp_BNT=old_logp_BNT), *weights
            )

        arrays = batch.rollout, batch.old_logp_BNT, *weights
        mask_BNT = batch.rollout.mask_BNT
        (_, metrics), grads = length_buckets.at_narrowest(
            narrow, arrays, mask_BNT, num_length_buckets
        )
        return jax.tree.map(jnp.add, total, (grads, metrics)), None

    first = jax.tree.map(lambda x: x[0], parts)
    (_, metrics), grads = jax.eval_shape(lambda *part: gradient(lora, *part), *first)
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), (grads, metrics))
    return jax.lax.scan(accumulate, zeros, parts)[0]


def _step(state: TrainState, grads, metrics, optimizer):
    """One optimizer step, left out if the gradient or the loss is not finite."""
    norm = optax.tree.norm(grads)
    finite = jnp.isfinite(norm) & jnp.isfinite(metrics["loss"])
    updates, opt_state = optimizer.update(grads, state.opt_state, state.lora)
    lora = optax.apply_updates(state.lora, updates)

    def keep(new, old):
        return jax.tree.map(lambda n, o: jnp.where(finite, n, o), new, old)

    state = TrainState(
        step=state.step + 1,
        lora=keep(lora, state.lora),
        opt_state=keep(opt_state, state.opt_state),
        skipped=jnp.where(finite, 0, state.skipped + 1),
    )
    metrics = {f"update/{name}": value for name, value in metrics.items()}
    metrics["update/grad_norm"] = norm
    metrics["update/skipped"] = (~finite).astype(jnp.float32)
    return state, metrics
