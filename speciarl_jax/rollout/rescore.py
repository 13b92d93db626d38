"""Log-probabilities of a whole step's rollouts by the policy before its updates, in parts."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from speciarl_jax.models.prompt_batch import PromptBatch
from speciarl_jax.rollout import length_buckets, logprobs, slot_compaction
from speciarl_jax.rollout.types import Rollout
from speciarl_jax.runtime.batching import merge_strided, split_strided


def answer_logp(
    lora: nnx.State,
    base: nnx.State,
    prompt: PromptBatch,
    features_BMD: jax.Array,
    rollout: Rollout,
    *,
    graphdef: nnx.GraphDef,
    parts: int,
    use_lora: bool = True,
    sampled: bool = True,
    num_length_buckets: int = 1,
    **options: Any,
) -> jax.Array:
    """Computes the trainer's log-probability of each token; no gradient flows through it.

    Args:
      graphdef: joins `lora` and `base` into the policy.
      parts: the images are scored in so many parts, one after the other, as updates do; must
        divide B.
      use_lora: False scores with the base policy.
      sampled: whether `lora` sampled the rollout, so that the features are its own. If not, a
        policy that trains its vision encoder encodes the images again; `prompt` must have them.
      num_length_buckets: how many widths a part is compiled for (`rollout.widths`); above 1, images
        with answers of like length share one.
      **options: of `logprobs.answer_logprobs`.

    Returns:
      float32 [B, N, T]; what stands outside the answers is finite and means nothing.
    """

    def score(part):
        prompt, features_BMD, rollout = part
        policy = nnx.merge(graphdef, lora, base)
        if encodes:
            images = prompt.patches_BSC, prompt.layout
            features_BMD = policy.encode_images(*images, use_lora=use_lora)

        def narrow(tokens_BNT):
            scores = logprobs.answer_logprobs(
                policy, prompt, features_BMD, tokens_BNT, use_lora=use_lora, **options
            )
            behind = rollout.tokens_BNT.shape[-1] - tokens_BNT.shape[-1]
            return jnp.pad(scores.logp_BNT, [(0, 0), (0, 0), (0, behind)])

        return length_buckets.at_narrowest(
            narrow, rollout.tokens_BNT, rollout.mask_BNT, num_length_buckets
        )

    encodes = not sampled and nnx.merge(graphdef, lora, base).trains_encoder
    whole = prompt if encodes else prompt.without_images(), features_BMD, rollout
    order_SR = (
        length_buckets.by_length(rollout.mask_BNT, parts)
        if min(parts, num_length_buckets) > 1
        else None
    )
    if order_SR is not None:
        whole = jax.tree.map(lambda x: slot_compaction.take_images(x, order_SR), whole)
    found_BNT = merge_strided(
        jax.lax.map(score, jax.tree.map(lambda x: split_strided(x, parts), whole))
    )
    if order_SR is not None:
        found_BNT = slot_compaction.take_images(found_BNT, jnp.argsort(order_SR, axis=1))
    return jax.lax.stop_gradient(found_BNT)
