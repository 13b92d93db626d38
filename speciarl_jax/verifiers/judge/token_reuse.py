"""The policy's tokens as those of a judge with the same vocabulary.

Axes: T tokens of a response, L bytes of it, A tokens of an answer, V vocabulary of the policy.
"""

from collections.abc import Sequence

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from speciarl_jax.verifiers import prefilter
from speciarl_jax.verifiers.parsing_on_device import TokenBytes


@flax.struct.dataclass
class Reuse:
    """Which of the judge's tokens stand for those of the policy, in the form of `normalize`.

    Attributes:
      whole_V: int32, the judge's token with the same bytes in that form, or -1.
      bare_V: int32, the same without the leading space, or -1.
      byte_256: int32, the judge's token of each single byte; -1 for bytes that the form never has.
    """

    whole_V: jax.Array
    bare_V: jax.Array
    byte_256: jax.Array

    @classmethod
    def create(
        cls, policy_bytes: Sequence[bytes], judge_bytes: Sequence[bytes]
    ) -> tuple["Reuse", bool]:
        """The tables, and whether the vocabularies agree.

        They agree if each token of the policy that consists of letters, digits, dashes and a
        leading space in that form, as it is, is one of the judge's.

        Raises:
          ValueError: the judge has no token for some byte.
        """
        table, found = prefilter.normal_table(), {}
        for index, spelt in enumerate(judge_bytes):
            if spelt:
                found.setdefault(spelt, index)
        whole_V = np.full(len(policy_bytes), -1, np.int32)
        bare_V, agree = whole_V.copy(), True
        for index, spelt in enumerate(policy_bytes):
            normal = table[np.frombuffer(spelt, np.uint8)].tobytes()
            if not normal or b" " in normal[1:]:
                continue
            whole_V[index] = found.get(normal, -1)
            bare_V[index] = found.get(normal[1:], -1) if normal[:1] == b" " else -1
            agree &= normal != spelt or whole_V[index] >= 0
        byte_256 = np.array([found.get(bytes([b]), -1) for b in range(256)], np.int32)
        lacking = [b for b in np.unique(table).tolist() if byte_256[b] < 0]
        if lacking:
            raise ValueError(
                f"the judge's tokenizer has no token for the single bytes {lacking[:8]}; it must "
                "be a byte-level BPE, as Qwen's are"
            )
        return cls(*map(jnp.asarray, (whole_V, bare_V, byte_256))), agree

    def __call__(
        self,
        tokens: TokenBytes,
        tokens_T: jax.Array,
        owner_L: jax.Array,
        within_L: jax.Array,
        normal_L: jax.Array,
        kept_L: jax.Array,
        size: int,
    ) -> tuple[jax.Array, jax.Array]:
        """The answer in the judge's tokens: those of the policy where they are whole, else bytes.

        Args:
          tokens: bytes of the policy's tokens.
          tokens_T: int32 response.
          owner_L: int32, from `byte_text.owners`.
          within_L: int32, likewise.
          normal_L: uint8, from `Screen`.
          kept_L: bool, likewise.
          size: A, static.

        Returns:
          int32 [A], and the int32 number of tokens, which may exceed A.
        """
        kept_T = jnp.zeros(tokens_T.shape[0], jnp.int32).at[owner_L].add(kept_L.astype(jnp.int32))
        token_L = tokens_T[owner_L]
        lost_L = tokens.length_V[token_L] - kept_T[owner_L]
        # Where one byte is lost, it must be the first: the space that begins a word.
        first_T = jnp.zeros(tokens_T.shape[0], bool).at[owner_L].max(kept_L & (within_L == 0))
        one_L = (lost_L == 1) & ~first_T[owner_L]
        one_L = jnp.where(one_L, self.bare_V[token_L], -1)
        one_L = jnp.where(lost_L == 0, self.whole_V[token_L], one_L)
        starts_L = within_L == jnp.where(lost_L == 0, 0, 1)
        emits_L = kept_L & ((one_L < 0) | starts_L)
        value_L = jnp.where(one_L < 0, self.byte_256[normal_L], one_L)
        count_L = jnp.cumsum(emits_L.astype(jnp.int32))
        slot_L = jnp.where(emits_L, count_L - 1, size)
        return jnp.zeros(size, jnp.int32).at[slot_L].set(value_L, mode="drop"), count_L[-1]
