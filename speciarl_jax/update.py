"""One functional policy update: gradients over micro-batches, then one optimizer step."""

import functools
from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
from flax import nnx

from speciarl_jax.losses import kl
from speciarl_jax.rollout import logprobs
from speciarl_jax.types import UpdateBatch

# (logp_BNT, old_logp_BNT, advantage_BN, weight_BNT) -> (loss, metrics); see `losses/`.
PolicyLoss = Callable[..., tuple[jax.Array, dict[str, jax.Array]]]


@flax.struct.dataclass
class TrainState:
    """All that training changes.

    Attributes:
      step: int32, updates that were asked for.
      lora: `nnx.State` of the adapters, float32.
      opt_state: of the optimizer.
      skipped: int32, updates in a row that were left out because the gradient was not finite.
    """

    step: jax.Array
    lora: Any
    opt_state: Any
    skipped: jax.Array


def init_state(lora: nnx.State, optimizer: optax.GradientTransformation) -> TrainState:
    """The state before the first update; a copy of the adapters, so that it may be donated."""
    lora = jax.tree.map(jnp.copy, lora)
    # Two zeros: one buffer cannot be donated twice.
    step, skipped = jnp.zeros((), jnp.int32), jnp.zeros((), jnp.int32)
    return TrainState(step=step, lora=lora, opt_state=optimizer.init(lora), skipped=skipped)


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
) -> tuple[TrainState, dict[str, jax.Array]]:
    """Policy loss plus `kl_coefficient` times k3 to the reference, which is the same weights
    with LoRA off.

    The weights of the tokens hold the whole batch's denominator before the batch is cut, so the
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

    Returns:
      The new state and float32 metrics. If the gradient is not finite, only `step` and `skipped`
      change, and `update/skipped` is 1.

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
    weight_BNT = token_weights(taken_BNT)

    score = functools.partial(
        logprobs.answer_logprobs,
        banned_V=banned_V,
        temperature=temperature,
        chunk_size=logprob_chunk,
        remat=remat,
        frozen_head=True,
    )

    def loss_of(lora, part, weight_BNT):
        policy = nnx.merge(graphdef, lora, base)
        return _loss(policy, part, weight_BNT, score, policy_loss, kl_coefficient)

    parts = jax.tree.map(lambda x: cut(x, micro_batches), (batch, weight_BNT))
    grads, metrics = _sum_over_parts(loss_of, state.lora, parts)
    return _step(state, grads, metrics, optimizer)


def _loss(policy, part: UpdateBatch, weight_BNT, score, policy_loss, kl_coefficient):
    """Loss and metrics of some images: policy loss, and KL to the policy with LoRA off."""

    def score_with(use_lora):
        return score(
            policy, part.prompt, part.features_BMD, part.rollout.tokens_BNT, use_lora=use_lora
        )

    logp_BNT, entropy_BNT = score_with(True)
    loss, metrics = policy_loss(logp_BNT, part.rollout.logp_BNT, part.advantage_BN, weight_BNT)
    metrics["entropy"] = jnp.sum(weight_BNT * entropy_BNT)
    if kl_coefficient:
        reference_BNT, _ = score_with(False)
        taken_BNT = weight_BNT > 0
        kl_BNT = kl.k3(jnp.where(taken_BNT, logp_BNT, 0), jnp.where(taken_BNT, reference_BNT, 0))
        metrics["kl"] = jnp.sum(weight_BNT * kl_BNT)
        loss += kl_coefficient * metrics["kl"]
    return loss, {"loss": loss, **metrics}


def _sum_over_parts(loss_of, lora, parts):
    """Gradients and metrics of `loss_of(lora, *part)`, added over the leading axis of `parts`."""
    gradient = jax.value_and_grad(loss_of, has_aux=True)

    def accumulate(total, part):
        (_, metrics), grads = gradient(lora, *part)
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
    metrics["update/gradient_norm"] = norm
    metrics["update/skipped"] = (~finite).astype(jnp.float32)
    return state, metrics


def cut(x: jax.Array, parts: int) -> jax.Array:
    """[B, ...] to [parts, B / parts, ...]; part i takes every `parts`-th image.

    Strided, so that a batch axis that is sharded stays sharded in every part.
    """
    return jnp.swapaxes(x.reshape(x.shape[0] // parts, parts, *x.shape[1:]), 0, 1)
