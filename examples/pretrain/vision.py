"""Supervises a vision encoder with the levels of a taxonomy, before it joins a language model.

A small encoder learns far more from "an eagle, a bird of prey, a bird, an animal" at once than from
completions. Every level of the label tree gets a linear head over the mean of the merged tokens.
The heads are thrown away; the decoder reads the merged tokens.
"""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from speciarl_jax.models.qwen2_5_vl.vision import VisionEncoder


@dataclasses.dataclass(frozen=True)
class Levels:
    """Holds the targets of every label at every level.

    Attributes:
      names: of the classes of each level.
      target: int32 [labels, levels], the class of a label at a level; -1 where it has none.
    """

    names: tuple[tuple[str, ...], ...]
    target: np.ndarray


def levels(paths: Sequence[Sequence[str | None]]) -> Levels:
    """Numbers the classes of each level.

    Args:
      paths: for each label its name at each level, None where the tree skips one.

    Raises:
      ValueError: the paths differ in length.
    """
    depths = {len(path) for path in paths}
    if len(depths) != 1:
        raise ValueError(f"label paths have {sorted(depths)} levels; all need the same number")
    columns = list(zip(*paths, strict=True))
    names = tuple(tuple(sorted(set(column) - {None})) for column in columns)
    target = [
        [classes.index(name) if name in classes else -1 for name in column]
        for column, classes in zip(columns, names, strict=True)
    ]
    return Levels(names, np.array(target, np.int32).T)


class TaxonomyHeads(nnx.Module):
    """Classifies the mean of an image's merged tokens, linearly, once a level."""

    def __init__(self, width: int, classes: Sequence[int], *, rngs: nnx.Rngs):
        self.norm = nnx.RMSNorm(width, rngs=rngs)
        self.heads = nnx.List([nnx.Linear(width, count, rngs=rngs) for count in classes])

    def __call__(self, features_BMD: jax.Array) -> list[jax.Array]:
        pooled_BD = self.norm(jnp.mean(features_BMD, axis=1))
        return [head(pooled_BD) for head in self.heads]


def loss(
    encoder: VisionEncoder,
    heads: TaxonomyHeads,
    patches_BSC: jax.Array,
    layout,
    target_BL: jax.Array,
    *,
    level_weights: Sequence[float],
    label_smoothing: float,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Computes the weighted cross-entropy over the levels; a level that a label lacks is left out.

    Args:
      encoder: makes the merged tokens.
      heads: classify them.
      patches_BSC: images, one a row, all of one size.
      layout: their `VisionLayout`.
      target_BL: int32 class at each level, -1 for none.
      level_weights: one a level.
      label_smoothing: in [0, 1).

    Returns:
      The loss, float32, and `accuracy` [L] over the images that have the level.
    """
    logits = heads(encoder(patches_BSC, layout))
    total, accuracy = 0.0, []
    for level, (logits_BC, weight) in enumerate(zip(logits, level_weights, strict=True)):
        target_B = target_BL[:, level]
        known_B = target_B >= 0
        count = jnp.maximum(jnp.sum(known_B), 1)
        one_hot_BC = jax.nn.one_hot(target_B, logits_BC.shape[-1])
        smooth_BC = optax.smooth_labels(one_hot_BC, label_smoothing)
        entropy_B = optax.softmax_cross_entropy(logits_BC, smooth_BC)
        total += weight * jnp.sum(jnp.where(known_B, entropy_B, 0.0)) / count
        accuracy.append(jnp.sum(known_B & (jnp.argmax(logits_BC, -1) == target_B)) / count)
    return total, {"accuracy": jnp.stack(accuracy)}
