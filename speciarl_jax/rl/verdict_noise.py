"""Verdicts that are wrong on purpose, for the study of robustness (arXiv 2603.03197, ablations)."""

import jax
import jax.numpy as jnp

from speciarl_jax.verifiers.category import Category


def noisy(
    category_BN: jax.Array, image_id_B: jax.Array, step: jax.Array, *, rate: float, seed: int
) -> jax.Array:
    """Moves a verdict one rank up or down the ordered categories with probability `rate`.

    Specific and more specific are one rank, the highest, as in the authors' code: from there a
    verdict falls to less specific. Both ways are equally likely; at either end there is only one.
    An answer that could not be parsed has no rank and stays. Whether and where a verdict moves
    depends on the seed, the step, the image and the number of the answer, and neither on the
    verdict nor on where it lies in the batch or on the mesh. Pure, and the same for every verifier.

    Args:
      category_BN: int32 `Category`.
      image_id_B: uint32, of the images.
      step: int32 scalar, so that the noise of an image differs from epoch to epoch.
      rate: q; 0 changes nothing.
      seed: of the noise alone.

    Returns:
      int32 [B, N].

    Raises:
      ValueError: `rate` is no probability.
    """
    if not 0 <= rate <= 1:
        raise ValueError(f"config.label_noise.rate is {rate}; it must lie between 0 and 1")
    key = jax.random.fold_in(jax.random.key(seed), step)
    numbers_N = jnp.arange(category_BN.shape[1], dtype=jnp.uint32)

    def draw(image_id, number):
        own = jax.random.fold_in(jax.random.fold_in(key, image_id), number)
        return jax.random.uniform(own, (2,))

    chance_BN2 = jax.vmap(lambda i: jax.vmap(lambda n: draw(i, n))(numbers_N))(image_id_B)
    lowest, highest = int(Category.WRONG), int(Category.SPECIFIC)
    rank_BN = jnp.minimum(category_BN, highest)
    way_BN = jnp.where(chance_BN2[..., 1] < 0.5, -1, 1)
    way_BN = jnp.where(category_BN == lowest, 1, way_BN)
    way_BN = jnp.where(rank_BN == highest, -1, way_BN)
    moves_BN = (chance_BN2[..., 0] < rate) & (category_BN >= lowest)
    return jnp.where(moves_BN, rank_BN + way_BN, category_BN).astype(jnp.int32)
