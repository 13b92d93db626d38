"""Finds lists without separators: answers that name two labels one after the other.

Names are compared by `parsing.key`, in whole words. A name inside a longer one is not counted:
where "whale shark" is known as a kind of shark, it is no mention of a label "whale".
"""

from collections.abc import Mapping, Sequence

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from speciarl_jax.verifiers import parsing

# Between the words of a key.
_BREAKS = b" " + parsing.LIST_MARK
# An odd number, so that it has an inverse modulo 2**32 (the one of FNV-1a, 32 bits).
_MULTIPLIER = 16777619
_INVERSE = pow(_MULTIPLIER, -1, 2**32)


def index(names: Sequence[str], further: Mapping[str, int] | None = None) -> dict[bytes, int]:
    """Returns the keys of names -> the number of a label, the first one that is called so.

    Args:
      names: of the labels, by number.
      further: other names of labels and of kinds of them -> number of the label.
    """
    found: dict[bytes, int] = {}
    for name, label in [*((n, i) for i, n in enumerate(names)), *(further or {}).items()]:
        found.setdefault(parsing.key(name), label)
    found.pop(b"", None)
    return found


def names_two(key: bytes, labels: Mapping[bytes, int]) -> bool:
    """Tells whether a key names a label and, behind it, another one.

    Args:
      key: of an answer.
      labels: `index` of the names.
    """
    breaks = [i for i, byte in enumerate(key) if byte in _BREAKS]
    starts = [i for i in [0, *(b + 1 for b in breaks)] if key[i : i + 1].strip(_BREAKS)]
    ends = [*breaks, len(key)][::-1]
    first, first_end, reach = None, 0, 0
    for start in starts:
        end = next((e for e in ends if e > start and key[start:e] in labels), 0)
        if end <= reach:
            continue
        reach, label = end, labels[key[start:end]]
        if first is None:
            first, first_end = label, end
        elif start >= first_end and label != first:
            return True
    return False


@flax.struct.dataclass
class Mentions:
    """`names_two` on a device; F names, A bytes of a key.

    Attributes:
      hash_F: uint32, sorted hashes of the names.
      label_F: int32, their labels.
      powers_A: uint32, powers of the multiplier.
      inverses_A: uint32, powers of its inverse.
      most_words: static, of a name.
    """

    hash_F: jax.Array
    label_F: jax.Array
    powers_A: jax.Array
    inverses_A: jax.Array
    most_words: int = flax.struct.field(pytree_node=False)

    @classmethod
    def create(cls, labels: Mapping[bytes, int], max_answer_bytes: int) -> "Mentions":
        """Builds the table of an `index`; a name of more bytes is never found."""
        labels = {key: i for key, i in labels.items() if len(key) <= max_answer_bytes}
        hashes = {_hash(key): label for key, label in labels.items()} or {0: 0}
        words = [len(key.replace(parsing.LIST_MARK, b" ").split()) for key in labels]
        steps = range(max_answer_bytes)
        return cls(
            hash_F=jnp.asarray(np.array(sorted(hashes), np.uint32)),
            label_F=jnp.asarray(np.array([hashes[h] for h in sorted(hashes)], np.int32)),
            powers_A=jnp.asarray(_powers(_MULTIPLIER, steps)),
            inverses_A=jnp.asarray(_powers(_INVERSE, steps)),
            most_words=max(words, default=0),
        )

    def __call__(self, key_A: jax.Array) -> jax.Array:
        """Returns a bool for one key; uint8 [A], zero beyond its end."""
        size = key_A.shape[0]
        place = jnp.arange(size + 1, dtype=jnp.int32)
        padded = jnp.append(key_A, jnp.uint8(0))
        gap = (padded == 0) | jnp.isin(padded, np.frombuffer(_BREAKS, np.uint8))
        next_gap = jax.lax.cummin(jnp.where(gap, place, size), reverse=True)
        next_word = jax.lax.cummin(jnp.where(gap, size, place), reverse=True)
        start_A = ~gap[:-1] & jnp.concatenate([jnp.ones(1, bool), gap[: size - 1]])
        # The hash of key[s:e] is (before[e] - before[s]) / multiplier**s.
        terms_A = key_A.astype(jnp.uint32) * self.powers_A
        before = jnp.concatenate([jnp.zeros(1, jnp.uint32), jnp.cumsum(terms_A, dtype=jnp.uint32)])
        end_A, label_A = jnp.zeros(size, jnp.int32), jnp.zeros(size, jnp.int32)
        stop_A = next_gap[:-1]
        for _ in range(self.most_words):
            hash_A = (before[stop_A] - before[:-1]) * self.inverses_A
            row_A = jnp.searchsorted(self.hash_F, hash_A)
            row_A = jnp.minimum(row_A, self.hash_F.shape[0] - 1)
            hit_A = start_A & (self.hash_F[row_A] == hash_A)
            end_A = jnp.where(hit_A, stop_A, end_A)
            label_A = jnp.where(hit_A, self.label_F[row_A], label_A)
            stop_A = next_gap[next_word[stop_A]]
        reach_A = jnp.concatenate([jnp.zeros(1, jnp.int32), jax.lax.cummax(end_A)[:-1]])
        first = jnp.argmax(end_A > 0)
        other_A = (place[:-1] >= end_A[first]) & (label_A != label_A[first])
        return jnp.any((end_A > reach_A) & other_A)


def _powers(base: int, exponents: Sequence[int]) -> np.ndarray:
    return np.array([pow(base, i, 2**32) for i in exponents], np.uint32)


def _hash(key: bytes) -> int:
    return sum(byte * pow(_MULTIPLIER, i, 2**32) for i, byte in enumerate(key)) % 2**32
