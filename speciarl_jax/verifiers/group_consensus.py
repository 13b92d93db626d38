"""Verdicts on completions about an image without a label: by what their group agrees on.

A name's support is the share of the group whose answers are that name or one below it. Going down
from the best-supported name that was given, the last name whose support reaches the confidence
takes the place of the label: the same rule as `evaluation.consensus`, among the names that the
group gave. That name and those above it are right, and all others are wrong.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from speciarl_jax.verifiers.category import Category


class Agreed(NamedTuple):
    """What groups agree on.

    Attributes:
      category_BN: int32 `Category` for the name that the group agrees on.
      valid_BN: bool, the group agrees on a name.
      support_B: float32, the share of the group that supports this name; 0 without one.
    """

    category_BN: jax.Array
    valid_BN: jax.Array
    support_B: jax.Array


def verdicts(category_BNF: jax.Array, answer_BN: jax.Array, *, confidence: float) -> Agreed:
    """Judges each group by what it agrees on; traceable.

    A name stands for the leaves that it is right for, and is below another if it has fewer of
    them, and no others. A name below a leaf is supported by the same answer alone. A word of two
    senses is one name, right for the leaves of both. Of names that are supported equally well the
    one that was given first counts.

    Args:
      category_BNF: int8 `Category` of each answer if leaf F were the label; UNPARSED for all of
        them where there is no answer.
      answer_BN: uint32, equal for answers that say the same.
      confidence: the support that a name must have, in (0, 1].

    Raises:
      ValueError: the confidence is outside of (0, 1].
    """
    if not 0 < confidence <= 1:
        raise ValueError(
            f"config.reward.consensus_confidence is {confidence}; it is the share of a group that "
            "must support a name, so choose a number above 0 and not above 1, or 0 for no consensus"
        )
    judge = jax.vmap(functools.partial(_of_group, confidence=confidence))
    return Agreed(*judge(category_BNF.astype(jnp.int32), answer_BN))


def _of_group(category_NF, answer_N, *, confidence):
    count = category_NF.shape[0]
    right_NF = category_NF >= Category.GENERIC
    leaves_N = jnp.sum(right_NF, axis=1)
    below_leaf_N = jnp.any(category_NF == Category.MORE_SPECIFIC, axis=1)
    same_NN = answer_N[:, None] == answer_N
    shared_NN = jnp.sum(right_NF[:, None] & right_NF, axis=-1)
    # [i, j]: answer j names what answer i names, or something below it.
    implies_NN = (shared_NN == leaves_N) & (leaves_N > 0)
    implies_NN &= ~below_leaf_N[:, None] | same_NN
    is_below_NN = implies_NN & ~implies_NN.T
    support_N = jnp.sum(implies_NN, axis=1) / count

    def step_down(_, carried):
        chosen, left_N = carried
        best = jnp.argmax(jnp.where(left_N, support_N, -1.0))
        chosen = jnp.where(jnp.any(left_N), best, chosen)
        return chosen, left_N & is_below_NN[chosen]

    supported_N = (leaves_N > 0) & (support_N >= confidence - 1e-6)
    chosen, _ = jax.lax.fori_loop(0, count, step_down, (jnp.int32(-1), supported_N))
    leaf = jnp.argmax(right_NF[chosen])
    category_N = category_NF[:, leaf]
    wrong_N = right_NF[:, leaf] & ~implies_NN[:, chosen]
    category_N = jnp.where(wrong_N, Category.WRONG, category_N)
    agreed = chosen >= 0
    category_N = jnp.where(agreed, category_N, Category.UNPARSED)
    valid_N = jnp.broadcast_to(agreed, (count,))
    return category_N.astype(jnp.int32), valid_N, jnp.where(agreed, support_N[chosen], 0.0)
