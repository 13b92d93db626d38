"""How often an answer would be right whatever the image shows: its base rate, on the device."""

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from speciarl_jax.verifiers import matching_on_device
from speciarl_jax.verifiers.category import Category


@flax.struct.dataclass
class LabelShares:
    """How often each label of a tree is right.

    Attributes:
      leaf_K: int32, the leaves that training images have.
      share_K: float32, the shares of these images; sums to 1.
      broadest_FC: float32, the largest base rate of a name that means category C for leaf F; 0
        where there is none. UNPARSED is the first category.
    """

    leaf_K: jax.Array
    share_K: jax.Array
    broadest_FC: jax.Array

    @classmethod
    def create(cls, names: matching_on_device.Names, share_F: np.ndarray) -> "LabelShares":
        """Builds the tables.

        Args:
          names: of the tree.
          share_F: float, the share of the training images that has each leaf; sums to 1.

        Raises:
          ValueError: these are no shares of the leaves of the tree.
        """
        share_F = np.asarray(share_F, np.float32)
        category_MF = np.asarray(names.category_MF)
        leaves = category_MF.shape[1]
        if share_F.shape != (leaves,) or np.any(share_F < 0) or abs(share_F.sum() - 1) > 1e-3:
            raise ValueError(
                f"label shares have shape {share_F.shape} and sum to {share_F.sum()}; give one "
                f"share of the training images for each of the {leaves} leaves"
            )
        (leaf_K,) = np.nonzero(share_F)
        rate_M1 = ((category_MF >= Category.GENERIC) @ share_F)[:, None]
        broadest = [np.max(rate_M1 * (category_MF == c), axis=0) for c in sorted(Category)]
        tables = leaf_K.astype(np.int32), share_F[leaf_K], np.stack(broadest, axis=1)
        return cls(*map(jnp.asarray, tables))

    def rate(
        self, names: matching_on_device.Names, reading: matching_on_device.Reading
    ) -> jax.Array:
        """The share of the training images for which an answer would be generic or better.

        Args:
          names: of the tree.
          reading: of the answer.

        Returns:
          A float32 scalar in [0, 1].
        """

        def add(total, one):
            leaf, share = one
            category, _ = matching_on_device.compare(names, reading, leaf)
            return total + jnp.where(category >= Category.GENERIC, share, 0.0), None

        return jax.lax.scan(add, jnp.float32(0), (self.leaf_K, self.share_K))[0]

    def broadest(self, category_BN: jax.Array, leaf_index_B: jax.Array) -> jax.Array:
        """The largest base rate that a name of this category has for the true label.

        It stands for an answer that the tree does not know and a judge sorted.

        Args:
          category_BN: int32 `Category`.
          leaf_index_B: int32, of the true label.

        Returns:
          float32 [B, N].
        """
        column_BN = category_BN - min(Category)
        return jnp.take_along_axis(self.broadest_FC[leaf_index_B], column_BN, axis=1)
