"""The batch of prompts that the stages of a step share. Axes: B images, P prompt tokens."""

from typing import Any

import flax.struct
import jax


@flax.struct.dataclass
class PromptBatch:
    """A batch of images with their prompts, ready for the policy.

    Attributes:
      patches_BSC: float32, normalised patches in the order of the published image processor; None
        once the vision encoder has run.
      layout: `VisionLayout` of the images; None likewise.
      tokens_BP: int32 prompt tokens, padded on the left.
      mask_BP: bool, true where `tokens_BP` is a token.
      positions_B3P: int32 rotary positions (temporal, height, width).
      next_position_B: int32, rotary position of the first token of a completion.
      image_id_B: uint32, stable identity of an image; folded into its sampling keys.
      label_index_B: int32, index of the true label in the verifier's tables.
      weight_B: float32, 1 for an image and 0 for a row that only pads the batch.
      target: `Rollout` of one given completion for each image, for supervised training; else None.
      features_BMD: of the images, where they come from the cache of features; else None.
    """

    patches_BSC: jax.Array
    layout: Any
    tokens_BP: jax.Array
    mask_BP: jax.Array
    positions_B3P: jax.Array
    next_position_B: jax.Array
    image_id_B: jax.Array
    label_index_B: jax.Array
    weight_B: jax.Array
    target: Any = None
    features_BMD: jax.Array | None = None

    def without_images(self, features_BMD: jax.Array | None = None) -> "PromptBatch":
        """Returns the prompts alone, or with features in place of the images."""
        return self.replace(patches_BSC=None, layout=None, features_BMD=features_BMD)
