"""Log-probabilities of given answers, teacher-forced against the shared prompt."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from speciarl_jax.models.prompt_batch import PromptBatch
from speciarl_jax.models.vision_language import VisionLanguageModel
from speciarl_jax.rollout import sampling
from speciarl_jax.runtime import activation_sharding


class AnswerScores(NamedTuple):
    """What a policy makes of given answers, in nats; outside the answers finite and meaningless."""

    logp_BNT: jax.Array  # float32 log-probability of each token
    # float32, of the distribution it was drawn from; without gradient unless that is asked for.
    entropy_BNT: jax.Array
    # float32 log-probability under the frozen base, without gradient; or None.
    reference_BNT: jax.Array | None


def answer_logprobs(
    policy: VisionLanguageModel,
    batch: PromptBatch,
    features_BMD: jax.Array,
    tokens_BNT: jax.Array,
    *,
    banned_V: jax.Array,
    temperature: jax.Array | float = 1.0,
    use_lora: bool = True,
    chunk_size: int = 16,
    remat: str = "none",
    frozen_head: bool = False,
    entropy_gradient: bool = False,
    reference: bool = False,
    reference_features_BMD: jax.Array | None = None,
) -> AnswerScores:
    """Log-probability and entropy at each token of N answers about each image.

    The prompt is run once an image and the answers attend to it (`Decoder.forward_shared`). The
    head sees answer positions only, `chunk_size` of them at a time: logits of the whole batch never
    exist, in the backward pass neither.

    Args:
      batch: images and prompts, padded on the left.
      features_BMD: `policy.encode_images` of the images.
      tokens_BNT: the answers, padded on the right.
      banned_V: bool, the tokens that sampling banned.
      temperature: of the distribution; 0 means 1, as in `sampling.scaled_logits`.
      use_lora: False gives the reference policy.
      chunk_size: answer positions a call of the head.
      remat: what the backward pass computes again of the layers, a key of `remat.KINDS`.
      frozen_head: the head is not trained. Then the backward pass does not run it again, and no
        gradient reaches it.
      entropy_gradient: the entropy is differentiable too. With a frozen head this keeps one more
        vector of size D a token.
      reference: also score with LoRA off, in the same pass over the same weights.
      reference_features_BMD: of the frozen encoder, if the policy trains its own; else None.
    """
    x_BPD = policy.embed(batch.tokens_BP, features_BMD)
    reference_x_BPD = x_BPD if reference else None
    if reference and reference_features_BMD is not None:
        reference_x_BPD = policy.embed(batch.tokens_BP, reference_features_BMD)
    positions_3BP = jnp.swapaxes(batch.positions_B3P, 0, 1)
    length = tokens_BNT.shape[-1]
    # Nothing is predicted from the last token of an answer, so it is not run.
    position_BT = batch.next_position_B[:, None] + jnp.arange(length - 1, dtype=jnp.int32)
    hidden = policy.decoder.forward_shared(
        x_BPD,
        positions_3BP,
        batch.mask_BP,
        tokens_BNT[..., :-1],
        position_BT,
        use_lora=use_lora,
        remat=remat,
        reference_x_BPE=reference_x_BPD,
    )
    score = jax.checkpoint(_score)
    if frozen_head:
        score = _frozen_score_and_entropy if entropy_gradient else _frozen_score

    # Gathered once, and not for every chunk.
    head_DV = activation_sharding.constrain(policy.decoder.head_kernel(), None, "vocab")

    def score_chunk(chunk):
        tokens, own, *beside = activation_sharding.constrain(chunk, "batch", ...)
        rest = head_DV, banned_V, jnp.asarray(temperature, jnp.float32)
        return *score(own, tokens, *rest), *(_score(x, tokens, *rest)[0] for x in beside)

    streams = [_predicting(*states, tokens_BNT.shape[1]) for states in hidden]
    logp_BNT, entropy_BNT, *other = _map_chunks(score_chunk, (tokens_BNT, *streams), chunk_size)
    return AnswerScores(
        logp_BNT,
        entropy_BNT if entropy_gradient else jax.lax.stop_gradient(entropy_BNT),
        jax.lax.stop_gradient(other[0]) if other else None,
    )


def _predicting(prompt_BPD, answers_BNTD, answers):
    """The hidden state before each token [B, N, T, D]: the prompt's last, then the answer's own."""
    first = prompt_BPD[:, None, -1:]
    first_BN1D = jnp.broadcast_to(first, (first.shape[0], answers, 1, first.shape[-1]))
    return jnp.concatenate([first_BN1D, answers_BNTD], axis=2)


def _map_chunks(function: Callable, arrays_BNT: tuple[jax.Array, ...], size: int):
    """`function(arrays)` on `size` columns of T at a time, by one loop.

    Chunks along T leave the batch axis, which is the one that is sharded, alone.
    """
    length = arrays_BNT[0].shape[2]
    if length <= size:
        return function(arrays_BNT)
    count = -(-length // size)

    def cut(x):
        x = jnp.pad(x, [(0, 0), (0, 0), (0, count * size - length), *[(0, 0)] * (x.ndim - 3)])
        return jnp.moveaxis(x.reshape(*x.shape[:2], count, size, *x.shape[3:]), 2, 0)

    def join(x):
        x = jnp.moveaxis(x, 0, 2)
        return x.reshape(*x.shape[:2], count * size, *x.shape[4:])[:, :, :length]

    return jax.tree.map(join, jax.lax.map(function, jax.tree.map(cut, arrays_BNT)))


def _score(hidden, tokens, head_DV, banned_V, temperature):
    """Log-probability of `tokens` [...] and entropy [...] after hidden states [..., D]."""
    return _distribution(hidden, tokens, head_DV, banned_V, temperature)[:2]


def _distribution(hidden, tokens, head_DV, banned_V, temperature):
    """The same, and the probabilities [..., V]."""
    logits = jnp.matmul(hidden, head_DV, preferred_element_type=jnp.float32)
    logits = sampling.scaled_logits(logits, banned_V, temperature)
    # The maximum only keeps the exponentials in range; its gradient cancels.
    highest = jax.lax.stop_gradient(jnp.max(logits, axis=-1, keepdims=True))
    shifted = logits - highest
    unnormalised = jnp.exp(shifted)
    total = jnp.sum(unnormalised, axis=-1)
    chosen = jnp.take_along_axis(shifted, tokens[..., None], axis=-1)[..., 0]
    log_total = jnp.log(total)
    mean = jnp.sum(unnormalised * shifted, axis=-1) / total
    return chosen - log_total, log_total - mean, unnormalised / total[..., None]


@jax.custom_vjp
def _frozen_score(hidden, tokens, head_DV, banned_V, temperature):
    """`_score`, differentiable in `hidden` only.

    The gradient of a log-probability is linear in what comes back for it, so the pass that has the
    logits at hand computes it, as one vector of size D a token, and nothing of size V is kept or
    computed again.
    """
    return _score(hidden, tokens, head_DV, banned_V, temperature)


def _frozen_score_forward(hidden, tokens, head_DV, banned_V, temperature):
    logp, entropy, probability = _distribution(hidden, tokens, head_DV, banned_V, temperature)
    ascent = _ascent(tokens, probability)
    return (logp, entropy), _of_hidden(ascent, hidden, head_DV, temperature)


def _ascent(tokens, probability):
    """The gradient of log-probabilities of `tokens` [...] to the scaled logits, [..., V]."""
    is_token = jnp.arange(probability.shape[-1]) == tokens[..., None]
    return jnp.where(is_token, 1 - probability, -probability)


def _of_hidden(ascent, hidden, head_DV, temperature):
    """Turns a gradient to the scaled logits [..., V] into one to the hidden states [..., D]."""
    ascent = ascent.astype(head_DV.dtype)
    gradient = jnp.matmul(ascent, head_DV.T, preferred_element_type=jnp.float32)
    gradient /= jnp.where(temperature > 0, temperature, 1.0)
    return gradient.astype(hidden.dtype)


def _frozen_score_backward(gradient, cotangents):
    d_hidden = cotangents[0][..., None] * gradient
    return d_hidden.astype(gradient.dtype), None, None, None, None


_frozen_score.defvjp(_frozen_score_forward, _frozen_score_backward)


@jax.custom_vjp
def _frozen_score_and_entropy(hidden, tokens, head_DV, banned_V, temperature):
    """`_frozen_score` whose entropy is differentiable in `hidden` as well."""
    return _score(hidden, tokens, head_DV, banned_V, temperature)


def _frozen_score_and_entropy_forward(hidden, tokens, head_DV, banned_V, temperature):
    logp, entropy, probability = _distribution(hidden, tokens, head_DV, banned_V, temperature)
    # dH / dlogit = -p (log p + H); a probability that underflows to 0 adds nothing.
    log_probability = jnp.log(jnp.where(probability > 0, probability, 1.0))
    flatter = -probability * (log_probability + entropy[..., None])
    gradients = (
        _of_hidden(ascent, hidden, head_DV, temperature)
        for ascent in (_ascent(tokens, probability), flatter)
    )
    return (logp, entropy), tuple(gradients)


def _frozen_score_and_entropy_backward(gradients, cotangents):
    d_hidden = sum(
        cotangent[..., None] * gradient
        for cotangent, gradient in zip(cotangents, gradients, strict=True)
    )
    return d_hidden.astype(gradients[0].dtype), None, None, None, None


_frozen_score_and_entropy.defvjp(
    _frozen_score_and_entropy_forward, _frozen_score_and_entropy_backward
)
