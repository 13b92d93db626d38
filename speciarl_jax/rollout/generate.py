"""Sampling N answers about each image: prefill once an image, decode N against the prefix."""

import functools
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from speciarl_jax.models.decoder.cache import PrefixCache
from speciarl_jax.models.prompt_batch import PromptBatch
from speciarl_jax.models.vision_language import VisionLanguageModel
from speciarl_jax.rollout import sampling, slot_compaction
from speciarl_jax.rollout.types import Rollout, is_end
from speciarl_jax.runtime import activation_sharding


def generate(
    policy: VisionLanguageModel,
    batch: PromptBatch,
    features_BMD: jax.Array,
    key: jax.Array,
    *,
    num_rollouts: int,
    max_tokens: int,
    end_ids: tuple[int, ...],
    banned_V: jax.Array,
    temperature: jax.Array | float = 1.0,
    top_p: jax.Array | float = 1.0,
    use_lora: bool = True,
    merge_lora: bool = False,
    num_compactions: int = 0,
    decode_weights: str = "param_dtype",
    kv_cache: str = "dtype",
    weights: Any = None,
) -> Rollout:
    """Samples answers until each has ended or holds `max_tokens` tokens.

    The prompt is prefilled once an image, and its keys and values lie there once: the N answers
    are N queries against one prefix (`Decoder.decode_step`). The loop stops when all have ended.
    When those that go on find room in half of the decode slots (`slot_compaction`), they are moved
    there with their prompts' caches, and a loop of half the size goes on; so `num_compactions`
    times. That changes no answer: what is drawn depends on the number of an answer, not on its
    slot.

    In the smaller loops each slot has a copy of its image's prompt, and an image with many
    answers that go on takes several slots. There are never more slots than images, so no loop
    holds more than B prompts; while answers move, the caches of both loops exist
    (`kv_cache_budget.image_bytes`).

    Args:
      batch: images and prompts, padded on the left.
      features_BMD: `policy.encode_images` of the images.
      key: key of this step; the image, rollout and position are folded in here.
      num_rollouts: N.
      max_tokens: T, the longest answer, end-of-sequence token included.
      end_ids: tokens each of which ends an answer, and belongs to it; the first also pads.
      banned_V: bool, tokens that are never sampled.
      temperature: of the sampled distribution; 0 is greedy. Traced.
      top_p: nucleus, 1 for none. Traced.
      use_lora: False samples from the reference policy.
      merge_lora: decode with a copy of the linear layers to which the adapters are added.
      num_compactions: how often the loop is halved; each time is one more compiled loop.
      decode_weights: "int8" decodes with kernels that are rounded; the prompt is prefilled with
        those of the policy.
      kv_cache: one of `cache.KINDS`; "int8" keeps keys and values, of prompts and answers, in half
        of bfloat16's memory.
      weights: `policy.decoder.decode_weights` of these options; made here when None.

    Returns:
      `Rollout`.
    """
    batch_size, prompt_length = batch.tokens_BP.shape
    x_BPD = policy.embed(batch.tokens_BP, features_BMD)
    positions_3BP = jnp.swapaxes(batch.positions_B3P, 0, 1)
    hidden_BPD, prefix = policy.decoder.prefill(
        x_BPD, positions_3BP, batch.mask_BP, use_lora=use_lora
    )
    hidden_BND = jnp.broadcast_to(
        hidden_BPD[:, -1:], (batch_size, num_rollouts, hidden_BPD.shape[-1])
    )
    keys_BN = sampling.rollout_keys(key, batch.image_id_B, num_rollouts)

    dtype = hidden_BPD.dtype
    suffix = policy.decoder.init_suffix(batch_size, num_rollouts, max_tokens, dtype, kv_cache)
    if kv_cache == "int8":
        prefix = prefix.in_int8()
    if weights is None:
        weights = policy.decoder.decode_weights(
            use_lora=use_lora, merge_lora=merge_lora, kind=decode_weights
        )
    if policy.decoder.unrolled:
        prefix = prefix.by_layer()

    def draw(hidden_BND, keys_BN, position):
        return sampling.sample(
            policy.decoder.logits(hidden_BND),
            keys_BN,
            position,
            banned_V,
            temperature=temperature,
            top_p=top_p,
        )

    def advance(images, answers):
        step, token_BN = answers.step, answers.token_BN
        position_BN = images.next_position_B[:, None] + step - 1
        position_BN = jnp.broadcast_to(position_BN, token_BN.shape)
        hidden_BND, suffix = policy.decoder.decode_step(
            token_BN, position_BN, step - 1, images.prefix, answers.suffix, weights=weights
        )
        token_BN, logp_BN = draw(hidden_BND, answers.keys_BN, step)
        return answers.replace(suffix=suffix).append(token_BN, logp_BN, end_ids)

    # A row that only pads the batch is done from the start, so it never keeps the loop alive.
    done_BN = jnp.broadcast_to(batch.weight_B[:, None] == 0, keys_BN.shape)
    answers = _Answers.empty(keys_BN, done_BN, suffix, max_tokens, end_ids[0])
    answers = answers.append(*draw(hidden_BND, keys_BN, 0), end_ids)
    images = _Images(prefix, jnp.asarray(batch.next_position_B))
    parts = activation_sharding.parts(batch_size, "batch")
    sizes = slot_compaction.slot_sizes(batch_size // parts, num_rollouts, num_compactions)
    return _finish(answers, images, advance, parts, sizes[1:], max_tokens)


def _finish(answers, images, advance, parts, sizes, max_tokens: int) -> Rollout:
    """Runs answers to their end, in a loop of their own size and then in loops of `sizes`."""

    def go_on(answers):
        room = sizes[0] if sizes else (0, 1)
        return (answers.step < max_tokens) & ~slot_compaction.fits(answers.done_BN, parts, room)

    answers = jax.lax.while_loop(go_on, functools.partial(advance, images), answers)
    if not sizes:
        return answers.found()
    # At the last token nothing goes on: the places stay empty. A branch would keep both caches.
    done_BN = answers.done_BN | (answers.step >= max_tokens)
    places = slot_compaction.places(done_BN, parts, sizes[0])
    rest = answers.take(places), images.take(places)
    moved = _finish(*rest, advance, parts, sizes[1:], max_tokens)
    return jax.tree.map(places.put_back, answers.found(), moved)


@flax.struct.dataclass
class _Images:
    """What answers read of their images."""

    prefix: PrefixCache
    next_position_B: jax.Array  # int32

    def take(self, places: slot_compaction.Places) -> "_Images":
        """The images of the slots."""
        return _Images(self.prefix.over_batch(places.images), places.images(self.next_position_B))


@flax.struct.dataclass
class _Answers:
    """Answers that are being sampled; the carry of the loop."""

    step: jax.Array  # int32, tokens so far
    keys_BN: jax.Array  # `sampling.rollout_keys`
    token_BN: jax.Array  # int32, the last token
    done_BN: jax.Array  # bool
    tokens_BNT: jax.Array  # int32
    logp_BNT: jax.Array  # float32
    mask_BNT: jax.Array  # bool
    suffix: Any  # `SuffixCache`

    @classmethod
    def empty(cls, keys_BN, done_BN, suffix, max_tokens: int, pad_id: int) -> "_Answers":
        shape = (*done_BN.shape, max_tokens)
        return cls(
            step=jnp.int32(0),
            keys_BN=keys_BN,
            token_BN=jnp.full(shape[:2], pad_id, jnp.int32),
            done_BN=done_BN,
            tokens_BNT=jnp.full(shape, pad_id, jnp.int32),
            logp_BNT=jnp.zeros(shape, jnp.float32),
            mask_BNT=jnp.zeros(shape, bool),
            suffix=suffix,
        )

    def append(self, token_BN, logp_BN, end_ids: tuple[int, ...]) -> "_Answers":
        """One more token; answers that are done get padding."""
        token_BN = jnp.where(self.done_BN, end_ids[0], token_BN)
        return self.replace(
            step=self.step + 1,
            token_BN=token_BN,
            done_BN=self.done_BN | is_end(token_BN, end_ids),
            tokens_BNT=_write(self.tokens_BNT, token_BN, self.step),
            logp_BNT=_write(self.logp_BNT, jnp.where(self.done_BN, 0.0, logp_BN), self.step),
            mask_BNT=_write(self.mask_BNT, ~self.done_BN, self.step),
        )

    def take(self, places: slot_compaction.Places) -> "_Answers":
        """The answers that go on; empty places are done."""
        rows = jax.tree.map(places.answers, self.replace(step=None, suffix=None))
        return rows.replace(
            step=self.step,
            done_BN=rows.done_BN | places.empty(),
            suffix=self.suffix.over_batch(places.answers),
        )

    def found(self) -> Rollout:
        return Rollout(tokens_BNT=self.tokens_BNT, mask_BNT=self.mask_BNT, logp_BNT=self.logp_BNT)


def _write(target_BNT: jax.Array, value_BN: jax.Array, step: jax.Array) -> jax.Array:
    return jax.lax.dynamic_update_index_in_dim(target_BNT, value_BN, step, axis=2)
