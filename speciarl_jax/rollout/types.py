"""What sampling hands to verification and to the update. Axes: B images, N rollouts, T tokens."""

import flax.struct
import jax

from speciarl_jax.models.prompt_batch import PromptBatch


@flax.struct.dataclass
class Rollout:
    """Holds N sampled completions about each image.

    Attributes:
      tokens_BNT: int32, padded with the end-of-sequence token.
      mask_BNT: bool, true up to and including the end-of-sequence token.
      logp_BNT: float32 log-probability of each token under the temperature-scaled, unfiltered
        policy that sampled it; 0 outside the mask.
    """

    tokens_BNT: jax.Array
    mask_BNT: jax.Array
    logp_BNT: jax.Array


@flax.struct.dataclass
class Groups:
    """Holds the groups of rollouts of a batch with their verdicts.

    Attributes:
      prompt: images and prompts; a group with `weight_B` 0 is not learned from.
      features_BMD: output of the frozen vision encoder.
      rollout: the completions.
      category_BN: int32 `Category`.
      valid_BN: bool, whether a verdict exists.
    """

    prompt: PromptBatch
    features_BMD: jax.Array
    rollout: Rollout
    category_BN: jax.Array
    valid_BN: jax.Array


@flax.struct.dataclass
class Samples:
    """Holds the rollouts of the first K images of a step, for people to look at.

    Attributes:
      image_id_K: uint32.
      label_index_K: int32, index of the true label.
      weight_K: float32, 0 for a row without an image.
      tokens_KNT: int32.
      mask_KNT: bool.
      category_KN: int32, the verdicts.
      valid_KN: bool, whether a verdict exists.
      reward_KN: float32; NaN for a rollout that takes no part in the update.
    """

    image_id_K: jax.Array
    label_index_K: jax.Array
    weight_K: jax.Array
    tokens_KNT: jax.Array
    mask_KNT: jax.Array
    category_KN: jax.Array
    valid_KN: jax.Array
    reward_KN: jax.Array


@flax.struct.dataclass
class UpdateBatch:
    """Holds everything an update needs; no array depends on the policy that is updated.

    Attributes:
      prompt: images and prompts.
      features_BMD: output of the frozen vision encoder for `prompt`.
      rollout: the completions.
      advantage_BN: float32.
      valid_BN: bool, rollouts that take part in the update.
      old_logp_BNT: float32, the trainer's own log-probabilities before the first update of the step
        (`rescore.answer_logp`); None where they are not needed.
    """

    prompt: PromptBatch
    features_BMD: jax.Array
    rollout: Rollout
    advantage_BN: jax.Array
    valid_BN: jax.Array
    old_logp_BNT: jax.Array | None = None
