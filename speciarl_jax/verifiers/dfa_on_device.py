"""Runs the automata of `dfa` on a device. P bytes of a text, M automata that read it."""

from collections.abc import Sequence

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from speciarl_jax.verifiers import dfa


@flax.struct.dataclass
class Automata:
    """Several automata in one table, whose states are numbered through.

    Attributes:
      class_D256: int32, the class of each byte for each of D automata.
      next_SK: int32, the state after a byte of a class.
      label_S: int32, as in `dfa.Dfa`.
      first: static, the first state of each automaton; the one before it is dead.
    """

    class_D256: jax.Array
    next_SK: jax.Array
    label_S: jax.Array
    first: tuple[int, ...] = flax.struct.field(pytree_node=False)

    @classmethod
    def create(cls, *automata: dfa.Dfa) -> "Automata":
        """Puts automata into one table."""
        sizes = [len(one.label_S) for one in automata]
        offsets = np.cumsum([0, *sizes[:-1]])
        width = max(one.next_SK.shape[1] for one in automata)
        next_SK = np.zeros((sum(sizes), width), np.int32)
        for one, offset in zip(automata, offsets, strict=True):
            rows = slice(offset, offset + len(one.label_S))
            next_SK[rows, : one.next_SK.shape[1]] = one.next_SK + offset
        return cls(
            class_D256=jnp.asarray(np.stack([one.class_256 for one in automata]).astype(np.int32)),
            next_SK=jnp.asarray(next_SK),
            label_S=jnp.asarray(np.concatenate([one.label_S for one in automata])),
            first=tuple(int(offset) + 1 for offset in offsets),
        )

    def labels(
        self, text_P: jax.Array, which: Sequence[int], begin_M: jax.Array, end_M: jax.Array
    ) -> jax.Array:
        """Reads a text by M automata at once.

        Args:
          text_P: uint8.
          which: static numbers of M automata.
          begin_M: int32, the first byte that each reads.
          end_M: int32, the byte before which each stops.

        Returns:
          int32 [M, P], the label after each byte, and outside of [begin, end) the last one before.
        """
        class_MP = self.class_D256[np.asarray(which)][:, text_P]
        place_P = jnp.arange(text_P.shape[0])
        reads_MP = (place_P >= begin_M[:, None]) & (place_P < end_M[:, None])
        first_M = jnp.asarray([self.first[k] for k in which], jnp.int32)

        def step(state_M, at):
            class_M, reads_M = at
            state_M = jnp.where(reads_M, self.next_SK[state_M, class_M], state_M)
            return state_M, state_M

        _, state_PM = jax.lax.scan(step, first_M, (class_MP.T, reads_MP.T), unroll=8)
        return self.label_S[state_PM].T
