"""What sampling hands to verification and to the update. Axes: B images, N rollouts, T tokens."""

import functools
import operator

import flax.struct
import jax

from speciarl_jax.models.prompt_batch import PromptBatch


def is_end(tokens: jax.Array, end_ids: tuple[int, ...]) -> jax.Array:
    """Says which of these int32 tokens end a completion; bool, of the same shape."""
    return functools.reduce(operator.or_, [tokens == end for end in end_ids])


@flax.struct.dataclass
class Rollout:
    """Holds N sampled completions about each image."""

    tokens_BNT: jax.Array  # int32, padded with a token that ends a completion
    mask_BNT: jax.Array  # bool, true up to and including the token that ends a completion
    # float32 log-probability of each token under the temperature-scaled, unfiltered policy that
    # sampled it; 0 outside the mask.
    logp_BNT: jax.Array


@flax.struct.dataclass
class Groups:
    """Holds the groups of rollouts of a batch with their verdicts."""

    prompt: PromptBatch  # images and prompts; nothing is learned from a group with `weight_B` 0
    features_BMD: jax.Array  # output of the vision encoder that sampling saw
    rollout: Rollout
    category_BN: jax.Array  # int32 `Category`
    valid_BN: jax.Array  # bool, whether a verdict exists
    base_rate_BN: jax.Array | None = None  # float32, `verifiers.base.InGraphVerdicts`


@flax.struct.dataclass
class Samples:
    """Holds the rollouts of the first K images of a step, for people to look at."""

    image_id_K: jax.Array  # uint32
    label_index_K: jax.Array  # int32, index of the true label
    weight_K: jax.Array  # float32, 0 for a row without an image
    tokens_KNT: jax.Array  # int32
    mask_KNT: jax.Array  # bool
    category_KN: jax.Array  # int32, the verdicts
    valid_KN: jax.Array  # bool, whether a verdict exists
    reward_KN: jax.Array  # float32; NaN for a rollout that takes no part in the update


@flax.struct.dataclass
class UpdateBatch:
    """Holds everything an update needs; no array depends on the policy that is updated."""

    prompt: PromptBatch
    features_BMD: jax.Array  # output of the vision encoder for `prompt` that sampling saw
    rollout: Rollout
    advantage_BN: jax.Array  # float32
    valid_BN: jax.Array  # bool, rollouts that take part in the update
    # float32, the trainer's own log-probabilities before the first update of the step
    # (`rescore.answer_logp`); None where they are not needed.
    old_logp_BNT: jax.Array | None = None
    # float32, the same by the reference policy; None where the update scores with the base.
    reference_logp_BNT: jax.Array | None = None
