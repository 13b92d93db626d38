"""`parsing.extract` and `parsing.key` on a device: from response tokens to the bytes of a key.

Every function handles one response (1-D arrays) and is mapped over the batch by its caller.
Axes: T tokens of a response, L bytes of a response, A bytes of an answer, V vocabulary.
"""

from collections.abc import Sequence

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from speciarl_jax.verifiers import parsing


@flax.struct.dataclass
class TokenBytes:
    """The bytes of every vocabulary id, end to end.

    Attributes:
      flat: uint8, the bytes of all tokens after each other.
      offset_V: int32, where the bytes of a token begin.
      length_V: int32, how many they are.
      longest: static, the largest length.
    """

    flat: jax.Array
    offset_V: jax.Array
    length_V: jax.Array
    longest: int = flax.struct.field(pytree_node=False)

    @classmethod
    def create(cls, token_bytes: Sequence[bytes]) -> "TokenBytes":
        """Tables for `token_bytes[id]`; b"" for special tokens."""
        if not len(token_bytes):
            raise ValueError("token_bytes is empty; give the bytes of each of the vocabulary ids")
        length = np.asarray([len(b) for b in token_bytes], np.int32)
        total = int(length.sum(dtype=np.int64))
        if total == 0 or total >= 2**31:
            raise ValueError(f"token_bytes holds {total} bytes; it must hold 1 to {2**31 - 1}")
        return cls(
            flat=jnp.asarray(np.frombuffer(b"".join(token_bytes), np.uint8)),
            offset_V=jnp.asarray((np.cumsum(length) - length).astype(np.int32)),
            length_V=jnp.asarray(length),
            longest=int(length.max()),
        )


def owners(
    table: TokenBytes, tokens_T: jax.Array, mask_T: jax.Array, size: int
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Which token of a response each of its bytes belongs to; arguments as for `spell`.

    Returns:
      int32 [L], the place of the token in the response; int32 [L], which of its bytes it is; and
      the int32 number of bytes of the whole response. Beyond the end they mean nothing.
    """
    taken_T = mask_T & (tokens_T >= 0) & (tokens_T < table.length_V.shape[0])
    length_T = jnp.where(taken_T, table.length_V[jnp.where(taken_T, tokens_T, 0)], 0)
    end_T = jnp.cumsum(length_T)
    # Byte l belongs to the token whose number is the count of tokens that end at or before l.
    ends_L = jnp.zeros(size, jnp.int32).at[end_T].add(1, mode="drop")
    token_L = jnp.minimum(jnp.cumsum(ends_L), tokens_T.shape[0] - 1)
    return token_L, jnp.arange(size) - (end_T - length_T)[token_L], end_T[-1]


def spell(
    table: TokenBytes, tokens_T: jax.Array, mask_T: jax.Array, size: int
) -> tuple[jax.Array, jax.Array]:
    """Bytes of a response.

    Args:
      table: bytes of the tokens.
      tokens_T: int32 ids; an id outside of the vocabulary has no bytes.
      mask_T: bool; other tokens have no bytes.
      size: L, static.

    Returns:
      uint8 [L], zero beyond the end (the rest is cut off where a response is longer), and the
      int32 number of bytes of the whole response.
    """
    token_L, within_L, total = owners(table, tokens_T, mask_T, size)
    inside_L = jnp.arange(size) < total
    source_L = jnp.where(inside_L, table.offset_V[tokens_T[token_L]] + within_L, 0)
    return jnp.where(inside_L, table.flat[source_L], 0), total


def find(text_L: jax.Array, tag: str) -> tuple[jax.Array, jax.Array]:
    """How often a tag occurs (int32) and where it first begins (int32, 0 if it does not occur)."""
    size = text_L.shape[0]
    padded = jnp.pad(text_L, (0, len(tag.encode())))
    hit_L = jnp.ones(size, bool)
    for i, byte in enumerate(tag.encode()):
        hit_L &= padded[i : i + size] == byte
    return jnp.sum(hit_L, dtype=jnp.int32), jnp.argmax(hit_L).astype(jnp.int32)


def answer_span(
    text_L: jax.Array, *, require_think: bool
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """`parsing.extract` without the trimming.

    Returns:
      Whether there is one answer (bool; its content may be blank), and int32 start and stop.
    """
    opened, open_at = find(text_L, parsing.ANSWER_OPEN)
    closed, stop = find(text_L, parsing.ANSWER_CLOSE)
    found = (opened == 1) & (closed == 1) & (open_at < stop)
    if require_think:
        opened, think_at = find(text_L, parsing.THINK_OPEN)
        closed, done_at = find(text_L, parsing.THINK_CLOSE)
        found &= (opened == 1) & (closed == 1) & (think_at < done_at) & (done_at < open_at)
    return found, open_at + len(parsing.ANSWER_OPEN), stop


def _article_length(mapped_L: jax.Array, first: jax.Array, last: jax.Array) -> jax.Array:
    """Bytes of an article at `first` that is to be dropped, 0 if there is none."""
    longest = max(map(len, parsing.ARTICLES))
    head = jnp.take(mapped_L, first + jnp.arange(longest + 1), mode="fill", fill_value=0)
    length = jnp.int32(0)
    for article in parsing.ARTICLES:
        n = len(article)
        word = jnp.asarray(np.frombuffer(article + b" ", np.uint8))
        # A word after the article, so that "a" alone stays itself.
        same = jnp.all(head[: n + 1] == word) & (last > first + n)
        length = jnp.where(same, n, length)
    return length


def key_bytes(
    text_L: jax.Array, start: jax.Array, stop: jax.Array, size: int
) -> tuple[jax.Array, jax.Array]:
    """`parsing.key` of the bytes in [start, stop).

    Args:
      text_L: uint8 bytes of a response.
      start: int32 scalar.
      stop: int32 scalar.
      size: A, static.

    Returns:
      uint8 [A], zero beyond the end, and the int32 length of the whole key: 0 if it holds no word,
      above A if the key was cut off.
    """
    table = jnp.asarray(np.frombuffer(parsing.key_table(), np.uint8))
    space, dash, mark = (jnp.uint8(c) for c in b" -" + parsing.LIST_MARK)
    mapped_L = table[text_L]
    place_L = jnp.arange(text_L.shape[0], dtype=jnp.int32)
    word_L = (mapped_L != space) & (mapped_L != dash) & (mapped_L != mark)
    word_L &= (place_L >= start) & (place_L < stop)
    first = jnp.argmax(word_L).astype(jnp.int32)
    last = jnp.max(jnp.where(word_L, place_L, -1))
    after = first + _article_length(mapped_L, first, last)
    # Without an article this is `first` again.
    first = jnp.argmax(word_L & (place_L >= after)).astype(jnp.int32)
    mapped_L = jnp.where(mapped_L == dash, space, mapped_L)
    before_L = jnp.concatenate([space[None], mapped_L[:-1]])
    kept_L = ~((mapped_L == space) & (before_L == space))
    kept_L &= (place_L >= first) & (place_L <= last)
    count_L = jnp.cumsum(kept_L.astype(jnp.int32))
    slot_L = jnp.where(kept_L, count_L - 1, size)
    key_A = jnp.zeros(size, jnp.uint8).at[slot_L].set(mapped_L, mode="drop")
    return key_A, count_L[-1]
