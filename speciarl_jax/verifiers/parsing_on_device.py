"""`parsing.extract` and `parsing.phrase` on a device: from response tokens to a phrase's bytes.

Every function handles one response (1-D arrays) and is mapped over the batch by its caller.
Axes: T tokens of a response, L bytes of a response, A bytes of an answer, V vocabulary.
"""

from collections.abc import Sequence
from typing import NamedTuple

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


def _hits(text_L: jax.Array, tag: str) -> jax.Array:
    """bool [L], where a tag begins."""
    size, tag = text_L.shape[0], tag.encode()
    padded = jnp.pad(text_L, (0, len(tag)))
    hit_L = jnp.ones(size, bool)
    for i, byte in enumerate(tag):
        hit_L &= padded[i : i + size] == byte
    return hit_L


def find(text_L: jax.Array, tag: str) -> tuple[jax.Array, jax.Array]:
    """How often a tag occurs (int32) and where it first begins (int32, 0 if it does not occur)."""
    hit_L = _hits(text_L, tag)
    return jnp.sum(hit_L, dtype=jnp.int32), jnp.argmax(hit_L).astype(jnp.int32)


def answer_span(text_L: jax.Array, *, tags: str) -> tuple[jax.Array, jax.Array, jax.Array]:
    """`parsing.extract` without the trimming.

    Returns:
      Whether there is one answer (bool; its content may be blank), and int32 start and stop.
    """
    if tags == "first":
        return _first_span(text_L)
    opened, open_at = find(text_L, parsing.ANSWER_OPEN)
    closed, stop = find(text_L, parsing.ANSWER_CLOSE)
    found = (opened == 1) & (closed == 1) & (open_at < stop)
    if tags == "think":
        opened, think_at = find(text_L, parsing.THINK_OPEN)
        closed, done_at = find(text_L, parsing.THINK_CLOSE)
        found &= (opened == 1) & (closed == 1) & (think_at < done_at) & (done_at < open_at)
    return found, open_at + len(parsing.ANSWER_OPEN), stop


def _first_span(text_L: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The first pair of tags with more than white space in it.

    Blank pairs before it hold no tag, so that pairs need not be matched one after the other.
    """
    size, opening = text_L.shape[0], len(parsing.ANSWER_OPEN)
    place_L = jnp.arange(size, dtype=jnp.int32)
    solid_L = ~_is_any(text_L, parsing.ASCII_SPACE.encode())
    count_L = jnp.pad(jnp.cumsum(solid_L, dtype=jnp.int32), (1, 0))  # before each byte
    closes_L = jnp.where(_hits(text_L, parsing.ANSWER_CLOSE), place_L, size)
    next_L = jnp.pad(jax.lax.cummin(closes_L, reverse=True), (0, opening), constant_values=size)
    begin_L = jnp.minimum(place_L + opening, size)
    stop_L = next_L[begin_L]
    filled_L = (stop_L < size) & (count_L[stop_L] > count_L[begin_L])
    found_L = _hits(text_L, parsing.ANSWER_OPEN) & filled_L
    first = jnp.argmax(found_L)
    return jnp.any(found_L), begin_L[first], stop_L[first]


# What becomes of a folded character, beside the ASCII byte that it stands for.
_LONG_DASH, _COMBINING = 1, 2
# The length of a phrase that is not looked at.
TOO_LONG = 2**30


@flax.struct.dataclass
class Typography:
    """Tables for `phrase_bytes`, made from those of `parsing`.

    A character of two or three bytes that is folded has a row: of the byte before its last one, or
    of the two before it. The last byte then gives the ASCII byte, or `_LONG_DASH`, or `_COMBINING`.
    Row 0 folds nothing.

    Attributes:
      key_256: uint8, `parsing.key_table`.
      two_256: int32, the row of a first byte of two.
      three_256: int32, 64 times the number of a first byte of three; 0 for others.
      second: int32, the row of the second byte, at three_256 + its last six bits.
      last_R64: uint8, by row and the last six bits of the last byte.
    """

    key_256: jax.Array
    two_256: jax.Array
    three_256: jax.Array
    second: jax.Array
    last_R64: jax.Array

    @classmethod
    def create(cls) -> "Typography":
        """Builds the tables."""
        becomes = {char: ord(plain) for char, plain in parsing.FOLDED.items()}
        becomes |= dict.fromkeys(parsing.LONG_DASHES, _LONG_DASH)
        becomes |= dict.fromkeys(parsing.COMBINING, _COMBINING)
        raw = {char.encode(): code for char, code in becomes.items()}
        rows = {head: i for i, head in enumerate(sorted({one[:-1] for one in raw}), 1)}
        leads = sorted({head[0] for head in rows if len(head) == 2})
        two_256, three_256 = np.zeros(256, np.int32), np.zeros(256, np.int32)
        second = np.zeros((len(leads) + 1, 64), np.int32)
        last_R64 = np.zeros((len(rows) + 1, 64), np.uint8)
        for head, row in rows.items():
            if len(head) == 1:
                two_256[head[0]] = row
            else:
                number = leads.index(head[0]) + 1
                three_256[head[0]] = 64 * number
                second[number, head[1] & 63] = row
        for one, code in raw.items():
            last_R64[rows[one[:-1]], one[-1] & 63] = code
        return cls(
            key_256=jnp.asarray(np.frombuffer(parsing.key_table(), np.uint8)),
            two_256=jnp.asarray(two_256),
            three_256=jnp.asarray(three_256),
            second=jnp.asarray(second.reshape(-1)),
            last_R64=jnp.asarray(last_R64),
        )

    def fold(self, text_L: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Folds characters.

        Returns:
          uint8 [L], what each byte belongs to: an ASCII byte, `_LONG_DASH`, or itself; int32 [L],
          the bytes of the character that begins here (1 where nothing is folded); and bool [L],
          bytes that are dropped: all but the first of a folded character, and combining marks.
        """
        next_L, third_L = _ahead(text_L, 1), _ahead(text_L, 2)
        continues_L, third_too_L = next_L >> 6 == 2, third_L >> 6 == 2
        two_L = self.last_R64[self.two_256[text_L], next_L & 63]
        two_L = jnp.where(continues_L, two_L, 0)
        row_L = self.second[self.three_256[text_L] + (next_L & 63)]
        three_L = jnp.where(continues_L & third_too_L, self.last_R64[row_L, third_L & 63], 0)
        code_L = two_L | three_L  # No byte begins both.
        drop_L = code_L == _COMBINING
        code_L = jnp.where(drop_L, text_L, code_L)
        value_L = jnp.where(code_L > 0, code_L, text_L)
        length_L = 1 + (code_L > 0) + (three_L > 0)
        second_L, third_of_L = _behind(length_L, 1, 0) >= 2, _behind(length_L, 2, 0) == 3
        value_L = jnp.where(second_L, _behind(value_L, 1, 0), value_L)
        value_L = jnp.where(third_of_L, _behind(value_L, 2, 0), value_L)
        return value_L, length_L, drop_L | second_L | third_of_L


def _ahead(x_L: jax.Array, n: int) -> jax.Array:
    return jnp.concatenate([x_L[n:], jnp.zeros(min(n, x_L.shape[0]), x_L.dtype)])


def _behind(x_L: jax.Array, n: int, fill: int) -> jax.Array:
    return jnp.concatenate([jnp.full(n, fill, x_L.dtype), x_L])[: x_L.shape[0]]


class Phrase(NamedTuple):
    """An answer in comparable form on a device.

    Attributes:
      bytes_A: uint8, `parsing.phrase`, zero beyond the end.
      length: int32 bytes of the whole phrase: 0 if it holds no word, above A if it was cut off.
        `TOO_LONG` if the answer is, as in `parsing.too_long`.
      has_parts: bool, the answer is of the form "X (Y)", as in `parsing.parenthesis`.
      outer_end: int32, where the phrase of X ends; it begins with the whole.
      inner_start: int32, where the phrase of Y begins; it ends with the whole.
    """

    bytes_A: jax.Array
    length: jax.Array
    has_parts: jax.Array
    outer_end: jax.Array
    inner_start: jax.Array


def _is_any(x_L: jax.Array, characters: bytes) -> jax.Array:
    return jnp.any(jnp.stack([x_L == byte for byte in characters]), axis=0)


def _mapped(tables: Typography, text_L: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Maps bytes as `parsing.phrase` does, each in its place; returns also which are dropped."""
    value_L, length_L, drop_L = tables.fold(text_L)
    before_L = _behind(value_L, 1, 0)
    after_L = jnp.where(length_L == 1, _ahead(value_L, 1), _ahead(value_L, 2))
    after_L = jnp.where(length_L == 3, _ahead(value_L, 3), after_L)
    spaces = parsing.ASCII_SPACE.encode()
    spaced_L = _is_any(before_L, spaces) | _is_any(after_L, spaces)
    dash_L = jnp.where(spaced_L, jnp.uint8(parsing.LIST_MARK[0]), jnp.uint8(ord("-")))
    mapped_L = tables.key_256[jnp.where(value_L == _LONG_DASH, dash_L, value_L)]
    # A control character of the answer itself is a space.
    mapped_L = jnp.where((text_L == _LONG_DASH) & (length_L == 1), jnp.uint8(ord(" ")), mapped_L)
    inner_L = _is_letter(before_L) & _is_letter(after_L) & (value_L == ord("'"))
    return mapped_L, drop_L | inner_L


def _is_letter(value_L: jax.Array) -> jax.Array:
    lower_L = value_L | 0x20
    found_L = (lower_L >= ord("a")) & (lower_L <= ord("z"))
    return found_L | ((value_L >= ord("0")) & (value_L <= ord("9"))) | (value_L >= 0x80)


def phrase_bytes(
    tables: Typography, text_L: jax.Array, start: jax.Array, stop: jax.Array, size: int
) -> Phrase:
    """`parsing.phrase` and `parsing.parenthesis` of the bytes in [start, stop).

    Args:
      tables: for folding and mapping.
      text_L: uint8 bytes of a response.
      start: int32 scalar.
      stop: int32 scalar.
      size: A, static.
    """
    place_L = jnp.arange(text_L.shape[0], dtype=jnp.int32)
    filled_L = (place_L >= start) & (place_L < stop)
    filled_L &= ~_is_any(text_L, parsing.ASCII_SPACE.encode())
    start = jnp.argmax(filled_L).astype(jnp.int32)
    stop = jnp.max(jnp.where(filled_L, place_L + 1, start))
    # The answer alone, with zeros behind it. The axis stays L, though it is shorter.
    place_L = jnp.arange(min(text_L.shape[0], parsing.MAX_TEXT_BYTES), dtype=jnp.int32)
    within_L = place_L < stop - start
    text_L = jnp.where(within_L, jnp.take(text_L, start + place_L, mode="clip"), 0)

    mapped_L, drop_L = _mapped(tables, text_L)
    kept_L = within_L & ~drop_L
    space_L = kept_L & _is_any(mapped_L, b" -")
    solid_L = kept_L & ~space_L
    word_L = solid_L & ~_is_any(mapped_L, parsing.LIST_MARK + parsing.AMPERSAND)
    first = jnp.argmax(word_L).astype(jnp.int32)
    last = jnp.max(jnp.where(word_L, place_L, -1))
    # Of a run of spaces and dashes the first is kept.
    solid_at_L = jax.lax.cummax(jnp.where(solid_L, place_L, -1))
    space_at_L = _behind(jax.lax.cummax(jnp.where(space_L, place_L, -1)), 1, -1)
    kept_L = solid_L | (space_L & (solid_at_L > space_at_L))
    kept_L &= (place_L >= first) & (place_L <= last)
    count_L = jnp.cumsum(kept_L.astype(jnp.int32))
    slot_L = jnp.where(kept_L, count_L - 1, size)
    letter_L = jnp.where(space_L, jnp.uint8(ord(" ")), mapped_L)
    bytes_A = jnp.zeros(size, jnp.uint8).at[slot_L].set(letter_L, mode="drop")

    open_L, close_L = text_L == ord("("), text_L == ord(")")
    open_at, close_at = jnp.argmax(open_L), jnp.argmax(close_L)
    outer_L, inner_L = word_L & (place_L < open_at), word_L & (place_L > open_at)
    has_parts = (jnp.sum(open_L) == 1) & (jnp.sum(close_L) == 1) & (open_at < close_at)
    has_parts &= jnp.any(outer_L) & jnp.any(inner_L) & (last < close_at)
    outer_last = jnp.max(jnp.where(outer_L, place_L, 0))
    return Phrase(
        bytes_A=bytes_A,
        length=jnp.where(stop - start > parsing.MAX_TEXT_BYTES, TOO_LONG, count_L[-1]),
        has_parts=has_parts,
        outer_end=count_L[outer_last],
        inner_start=count_L[jnp.argmax(inner_L)] - 1,
    )


def text_hash(text_L: jax.Array, kept_L: jax.Array) -> jax.Array:
    """Hashes what is kept of a text, a uint32 above 0; 0 where nothing is.

    Args:
      text_L: bytes or tokens.
      kept_L: bool.
    """
    place_L = jnp.cumsum(kept_L, dtype=jnp.uint32)
    mixed_L = text_L.astype(jnp.uint32) * jnp.uint32(0x9E3779B1) + place_L * jnp.uint32(0x85EBCA6B)
    mixed_L = (mixed_L ^ (mixed_L >> 15)) * jnp.uint32(0xC2B2AE35)
    mixed_L = (mixed_L ^ (mixed_L >> 13)) * jnp.uint32(0x27D4EB2F)
    found = jnp.sum(jnp.where(kept_L, mixed_L ^ (mixed_L >> 16), 0), dtype=jnp.uint32)
    return jnp.where(jnp.any(kept_L), jnp.maximum(found, 1), 0)
