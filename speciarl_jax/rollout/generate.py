"""Sampling N answers about each picture: prefill once a picture, decode N against the prefix."""

import itertools
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from speciarl_jax.models.qwen2_5_vl.model import Qwen25VL
from speciarl_jax.rollout import sampling
from speciarl_jax.types import PromptBatch, Rollout


def generate(
    policy: Qwen25VL,
    batch: PromptBatch,
    features_BMD: jax.Array,
    key: jax.Array,
    *,
    num_rollouts: int,
    max_tokens: int,
    eos_id: int,
    banned_V: jax.Array,
    temperature: jax.Array | float = 1.0,
    top_p: jax.Array | float = 1.0,
    use_lora: bool = True,
    merge_lora: bool = False,
    shrink: int = 0,
    weights: Any = None,
) -> Rollout:
    """Samples answers until each has ended or holds `max_tokens` tokens.

    The prompt is prefilled once a picture and its keys and values are never repeated: the N answers
    are N queries against one prefix (`Qwen25VL.decode_step`). The loop stops when all have ended.
    When half of the answers about every picture have ended, they are left behind, and a loop of
    half the width goes on with the others; and so on, `shrink` times. That changes no answer: what
    is drawn depends on the number of an answer, not on where it lies.

    Args:
      policy: the model.
      batch: pictures and prompts, padded on the left.
      features_BMD: `policy.encode_images` of the pictures.
      key: key of this step; the picture, rollout and position are folded in here.
      num_rollouts: N.
      max_tokens: T, the longest answer, end-of-sequence token included.
      eos_id: the token that ends an answer; it belongs to the answer.
      banned_V: bool, tokens that are never sampled.
      temperature: of the sampled distribution; 0 is greedy. Traced.
      top_p: nucleus, 1 for none. Traced.
      use_lora: False samples from the reference policy.
      merge_lora: decode with a copy of the linear layers to which the adapters are added.
      shrink: how often the loop is made narrower; each time is one more compiled loop.
      weights: `policy.decode_weights` of these options; made here when None.

    Returns:
      `Rollout`.
    """
    batch_size, prompt_length = batch.tokens_BP.shape
    x_BPD = policy.embed(batch.tokens_BP, features_BMD)
    positions_3BP = jnp.swapaxes(batch.positions_B3P, 0, 1)
    hidden_BPD, prefix = policy.prefill(x_BPD, positions_3BP, batch.mask_BP, use_lora=use_lora)
    hidden_BND = jnp.broadcast_to(
        hidden_BPD[:, -1:], (batch_size, num_rollouts, hidden_BPD.shape[-1])
    )
    keys_BN = sampling.rollout_keys(key, batch.image_id_B, num_rollouts)

    dtype = hidden_BPD.dtype
    suffix = policy.init_suffix(batch_size, num_rollouts, max_tokens, dtype)
    if weights is None:
        weights = policy.decode_weights(use_lora=use_lora, merge_lora=merge_lora)
    if policy.decoder.unrolled:
        prefix = prefix.by_layer()

    def draw(hidden_BND, keys_BN, position):
        return sampling.sample(
            policy.logits(hidden_BND),
            keys_BN,
            position,
            banned_V,
            temperature=temperature,
            top_p=top_p,
        )

    def advance(answers):
        step, token_BN = answers.step, answers.token_BN
        position_BN = jnp.broadcast_to(batch.next_position_B[:, None] + step - 1, token_BN.shape)
        hidden_BND, suffix = policy.decode_step(
            token_BN, position_BN, step - 1, prefix, answers.suffix, weights=weights
        )
        token_BN, logp_BN = draw(hidden_BND, answers.keys_BN, step)
        return answers.replace(suffix=suffix).append(token_BN, logp_BN, eos_id)

    # A row that only pads the batch is done from the start, so it never keeps the loop alive.
    done_BN = jnp.broadcast_to(batch.weight_B[:, None] == 0, keys_BN.shape)
    answers = _Answers.empty(keys_BN, done_BN, suffix, max_tokens, eos_id)
    answers = answers.append(*draw(hidden_BND, keys_BN, 0), eos_id)
    widths = [num_rollouts]
    while len(widths) <= shrink and widths[-1] > 1:
        widths.append(-(-widths[-1] // 2))
    left_behind = []
    for width, narrower in itertools.zip_longest(widths, widths[1:], fillvalue=0):
        if width < answers.token_BN.shape[1]:
            finished, answers = answers.split(width)
            left_behind.append(finished)

        def go_on(answers, narrower=narrower):
            running = jnp.max(jnp.sum(~answers.done_BN, axis=1))
            return (answers.step < max_tokens) & (running > narrower)

        answers = jax.lax.while_loop(go_on, advance, answers)
    return _in_order([*left_behind, answers])


@flax.struct.dataclass
class _Answers:
    """Answers that are being sampled, in the order of `number_BN`; the carry of the loop.

    Attributes:
      step: int32, tokens so far.
      number_BN: int32, which rollout of the picture this is.
      keys_BN: `sampling.rollout_keys`.
      token_BN: int32, the last token.
      done_BN: bool.
      tokens_BNT: int32.
      logp_BNT: float32.
      mask_BNT: bool.
      suffix: `SuffixCache`; None when the answers are finished.
    """

    step: jax.Array
    number_BN: jax.Array
    keys_BN: jax.Array
    token_BN: jax.Array
    done_BN: jax.Array
    tokens_BNT: jax.Array
    logp_BNT: jax.Array
    mask_BNT: jax.Array
    suffix: Any

    @classmethod
    def empty(cls, keys_BN, done_BN, suffix, max_tokens: int, eos_id: int) -> "_Answers":
        shape = (*done_BN.shape, max_tokens)
        number_BN = jnp.broadcast_to(jnp.arange(shape[1], dtype=jnp.int32), shape[:2])
        return cls(
            step=jnp.int32(0),
            number_BN=number_BN,
            keys_BN=keys_BN,
            token_BN=jnp.full(shape[:2], eos_id, jnp.int32),
            done_BN=done_BN,
            tokens_BNT=jnp.full(shape, eos_id, jnp.int32),
            logp_BNT=jnp.zeros(shape, jnp.float32),
            mask_BNT=jnp.zeros(shape, bool),
            suffix=suffix,
        )

    def append(self, token_BN, logp_BN, eos_id: int) -> "_Answers":
        """One more token; answers that are done get padding."""
        token_BN = jnp.where(self.done_BN, eos_id, token_BN)
        return self.replace(
            step=self.step + 1,
            token_BN=token_BN,
            done_BN=self.done_BN | (token_BN == eos_id),
            tokens_BNT=_write(self.tokens_BNT, token_BN, self.step),
            logp_BNT=_write(self.logp_BNT, jnp.where(self.done_BN, 0.0, logp_BN), self.step),
            mask_BNT=_write(self.mask_BNT, ~self.done_BN, self.step),
        )

    def split(self, width: int) -> tuple["_Answers", "_Answers"]:
        """Finished answers without their cache, and `width` answers with all that go on."""
        order_BN = jnp.argsort(self.done_BN, axis=1, stable=True)
        rows = self.replace(step=None, suffix=None)

        def take(x, index_BM):
            return jax.vmap(lambda x_N, index_M: x_N[index_M])(x, index_BM)

        finished = jax.tree.map(lambda x: take(x, order_BN[:, width:]), rows)
        going = jax.tree.map(lambda x: take(x, order_BN[:, :width]), rows)
        suffix = self.suffix.take(order_BN[:, :width])
        return finished, going.replace(step=self.step, suffix=suffix)


def _in_order(parts: list[_Answers]) -> Rollout:
    """All answers of each picture, sorted by their number."""
    if len(parts) == 1:
        (only,) = parts
        return Rollout(tokens_BNT=only.tokens_BNT, mask_BNT=only.mask_BNT, logp_BNT=only.logp_BNT)
    order_BN = jnp.argsort(jnp.concatenate([p.number_BN for p in parts], axis=1), axis=1)

    def join(name):
        x_BNT = jnp.concatenate([getattr(p, name) for p in parts], axis=1)
        return jnp.take_along_axis(x_BNT, order_BN[..., None], axis=1)

    return Rollout(**{name: join(name) for name in ("tokens_BNT", "mask_BNT", "logp_BNT")})


def _write(target_BNT: jax.Array, value_BN: jax.Array, step: jax.Array) -> jax.Array:
    return jax.lax.dynamic_update_index_in_dim(target_BNT, value_BN, step, axis=2)
