"""The batch of prompts that the stages of a step share. Axes: B images, P prompt tokens."""

from typing import Any

import flax.struct
import jax

UNLABELLED = -1  # index of the label of an image that has none: the KL alone learns from it


@flax.struct.dataclass
class PromptBatch:
    """A batch of images with their prompts, ready for the policy."""

    # float32, normalised patches in the order of the published image processor; None once the
    # vision encoder has run.
    patches_BSC: jax.Array
    layout: Any  # `VisionLayout` of the images; None likewise
    tokens_BP: jax.Array  # int32 prompt tokens, padded on the left
    mask_BP: jax.Array  # bool, true where `tokens_BP` is a token
    positions_B3P: jax.Array  # int32 rotary positions (temporal, height, width)
    next_position_B: jax.Array  # int32, rotary position of the first token of a completion
    image_id_B: jax.Array  # uint32, stable identity of an image; folded into its sampling keys
    # int32, index of the true label in the verifier's tables, or `UNLABELLED`
    label_index_B: jax.Array
    weight_B: jax.Array  # float32, 1 for an image and 0 for a row that only pads the batch
    # `Rollout` of one given completion for each image, for supervised training; else None.
    target: Any = None
    # Of the images, where they come from the cache of features; else None.
    features_BMD: jax.Array | None = None

    @property
    def labelled_B(self) -> jax.Array:
        """Says which rows are images with a label; bool."""
        return (self.weight_B > 0) & (self.label_index_B >= 0)

    @property
    def unlabelled_B(self) -> jax.Array:
        """Says which rows are images without a label; bool."""
        return (self.weight_B > 0) & (self.label_index_B < 0)

    def without_images(self, features_BMD: jax.Array | None = None) -> "PromptBatch":
        """Returns the prompts alone, or with features in place of the images."""
        return self.replace(patches_BSC=None, layout=None, features_BMD=features_BMD)

    def pad_left(self, count: int, pad_id: int, pad: Any) -> "PromptBatch":
        """Returns prompts with `count` more columns on the left, by `np.pad` or `jnp.pad`."""

        def columns(x, value):
            return pad(x, [(0, 0)] * (x.ndim - 1) + [(count, 0)], constant_values=value)

        return self.replace(
            tokens_BP=columns(self.tokens_BP, pad_id),
            mask_BP=columns(self.mask_BP, False),
            positions_B3P=columns(self.positions_B3P, 1),
        )
