"""`matching` and `abstention` on a device: from the bytes of a phrase to its category.

Every function handles one answer and is mapped over the batch by its caller. Axes: P bytes of a
phrase, S places where a part of it may begin, E places where one may end, C names, A bytes of a
name, F leaves. A part is looked up as it is spelt and without spaces: an axis of 2.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from speciarl_jax.verifiers import abstention, dfa, matching
from speciarl_jax.verifiers.category import Category
from speciarl_jax.verifiers.dfa_on_device import Automata
from speciarl_jax.verifiers.parsing_on_device import Phrase

# An odd multiplier of a polynomial hash modulo 2**32 (the one of FNV-1a, 32 bits).
_MULTIPLIER = 16777619
# Bits of `Names.use_C`.
_NAME, _MODIFIER, _FRAME = 1, 2, 4
# Of a part that nothing is good enough to be.
_NEVER = max(Category) + 1
_OPENER, _ABSTENTION = 0, 1


@flax.struct.dataclass
class Names:
    """Names, and what stands at their end, in the order of their hashes.

    Attributes:
      powers_P: uint32 powers of the multiplier.
      inverses_P: uint32, their inverses, less one power.
      hash_C: uint32, sorted.
      name_CA: uint8 keys, zero-padded.
      use_C: uint8, `_NAME`, `_MODIFIER` and `_FRAME`.
      meaning_C: int32, the row of a name in `category_MF`; many names mean the same.
      category_MF: int8 `Category` for each of the F leaves.
      automata: of what may stand in front of a name, and of abstentions.
      longest_run: static, how many names share one hash at most.
    """

    powers_P: jax.Array
    inverses_P: jax.Array
    hash_C: jax.Array
    name_CA: jax.Array
    use_C: jax.Array
    meaning_C: jax.Array
    category_MF: jax.Array
    automata: Automata
    longest_run: int = flax.struct.field(pytree_node=False)

    @classmethod
    def create(
        cls,
        relations: Sequence[Mapping[bytes, tuple[Category, str]]],
        opener: matching.Opener,
        *,
        max_answer_bytes: int,
        phrase_bytes: int,
    ) -> "Names":
        """Builds the tables.

        Raises:
          ValueError: a name has more than `max_answer_bytes`.
        """
        names = set().union(*relations)
        beside = {k for k in opener.modifiers | opener.frames if len(k) <= max_answer_bytes}
        keys = sorted(names | beside)
        longest = max(names, key=len)
        if len(longest) > max_answer_bytes:
            raise ValueError(
                f"the name {longest.decode('utf-8', 'replace')!r} has {len(longest)} bytes, and "
                f"max_answer_bytes is {max_answer_bytes}; raise max_answer_bytes or remove the name"
            )
        padded = b"".join(key.ljust(max_answer_bytes, b"\0") for key in keys)
        name_CA = np.frombuffer(padded, np.uint8).reshape(len(keys), max_answer_bytes)
        powers_P = _powers(_MULTIPLIER, 1, phrase_bytes)
        hash_C = _hash(name_CA, powers_P[:max_answer_bytes], np)
        order_C = np.argsort(hash_C, kind="stable")
        category_MF, meaning_of = _meanings(relations)
        meaning_C = np.array([meaning_of.get(key, 0) for key in keys], np.int32)
        uses = ((names, _NAME), (opener.modifiers, _MODIFIER), (opener.frames, _FRAME))
        use_C = np.array([sum((k in some) * use for some, use in uses) for k in keys])
        return cls(
            powers_P=jnp.asarray(powers_P),
            inverses_P=jnp.asarray(_powers(pow(_MULTIPLIER, -1, 2**32), 0, phrase_bytes)),
            hash_C=jnp.asarray(hash_C[order_C]),
            name_CA=jnp.asarray(name_CA[order_C]),
            use_C=jnp.asarray(use_C[order_C].astype(np.uint8)),
            meaning_C=jnp.asarray(meaning_C[order_C]),
            category_MF=jnp.asarray(category_MF),
            automata=Automata.create(dfa.compile(*opener.expressions), abstention.automaton()),
            longest_run=int(np.unique(hash_C, return_counts=True)[1].max()),
        )


def _meanings(
    relations: Sequence[Mapping[bytes, tuple[Category, str]]],
) -> tuple[np.ndarray, dict[bytes, int]]:
    """Returns the distinct rows of categories by leaf, int8 [M, F], and the row of each key.

    Row 0 is WRONG for all leaves.
    """
    leaves_of: dict[bytes, list[tuple[int, int]]] = {}
    for leaf, relation in enumerate(relations):
        for key, (category, _) in relation.items():
            leaves_of.setdefault(key, []).append((leaf, int(category)))
    number: dict[tuple[tuple[int, int], ...], int] = {(): 0}
    row_of = {key: number.setdefault(tuple(p), len(number)) for key, p in leaves_of.items()}
    category_MF = np.full((len(number), len(relations)), Category.WRONG, np.int8)
    for pairs, row in number.items():
        for leaf, category in pairs:
            category_MF[row, leaf] = category
    return category_MF, row_of


def _powers(base: int, first: int, count: int) -> np.ndarray:
    return np.asarray([pow(base, i, 2**32) for i in range(first, first + count)], np.uint32)


def _hash(key_A, powers_A, xp):
    """Polynomial hash; the zeros that pad a key add nothing, and no key holds a zero byte."""
    return xp.sum(key_A.astype(xp.uint32) * powers_A, axis=-1, dtype=xp.uint32)


class _Text(NamedTuple):
    """A phrase as it is spelt and squeezed.

    Attributes:
      bytes_2P: uint8, zero beyond the end.
      hashes_2P: uint32 hash of the first 0, 1, ... P bytes (P + 1 of them).
      place_2P: int32, where each byte of the phrase, and its end, is (P + 1 of them).
    """

    bytes_2P: jax.Array
    hashes_2P: jax.Array
    place_2P: jax.Array


class _Verdict(NamedTuple):
    """Whether some part is a name (bool), and its int32 category for the leaf."""

    known: jax.Array
    category: jax.Array


def _text(names: Names, bytes_P: jax.Array, length: jax.Array) -> _Text:
    size = bytes_P.shape[0]
    place_P = jnp.arange(size + 1)
    solid_P = (bytes_P != ord(" ")) & (place_P[:-1] < length)
    count_P = jnp.concatenate([jnp.zeros(1, jnp.int32), jnp.cumsum(solid_P, dtype=jnp.int32)])
    slot_P = jnp.where(solid_P, count_P[:-1], size)
    squeezed_P = jnp.zeros(size, jnp.uint8).at[slot_P].set(bytes_P, mode="drop")
    bytes_2P = jnp.stack([bytes_P, squeezed_P])
    terms_2P = bytes_2P.astype(jnp.uint32) * names.powers_P
    hashes_2P = jnp.pad(jnp.cumsum(terms_2P, axis=1, dtype=jnp.uint32), ((0, 0), (1, 0)))
    return _Text(bytes_2P, hashes_2P, jnp.stack([place_P.astype(jnp.int32), count_P]))


def _rows(names: Names, text: _Text, begin: jax.Array, end: jax.Array) -> jax.Array:
    """Looks up the parts [begin, end) of the phrase, both ways.

    Returns:
      int32 [..., 2], the row of the key, or -1.
    """
    form = jnp.arange(2)
    first, stop = text.place_2P[form, begin[..., None]], text.place_2P[form, end[..., None]]
    at = jnp.minimum(first, names.inverses_P.shape[0] - 1)
    hashes = text.hashes_2P[form, stop] - text.hashes_2P[form, first]
    hashes *= names.inverses_P[at]
    size = names.name_CA.shape[1]
    offsets = first[..., None] + jnp.arange(size)
    inside = offsets < stop[..., None]
    offsets = jnp.minimum(offsets, text.bytes_2P.shape[1] - 1)
    key = jnp.where(inside, text.bytes_2P[form[:, None], offsets], 0)
    row = jnp.searchsorted(names.hash_C, hashes)
    found = jnp.full(row.shape, -1, jnp.int32)
    for i in range(names.longest_run):
        c = jnp.minimum(row + i, names.hash_C.shape[0] - 1)
        same = jnp.all(names.name_CA[c] == key, axis=-1) & (stop > first) & (stop - first <= size)
        found = jnp.where(same, c, found)
    return found


class _Parts(NamedTuple):
    """The parts of a phrase, looked up; the same whatever the true label is.

    Attributes:
      tail_E2: int32 rows of the words at the end that may be left out; without the first place E,
        at which nothing is.
      kind_S: int32, what may be left out before each place.
      row_SE2: int32 rows of the parts.
      allowed_SE: bool, there is such a part.
    """

    tail_E2: jax.Array
    kind_S: jax.Array
    row_SE2: jax.Array
    allowed_SE: jax.Array


def _look_up(names: Names, text: _Text, kind_P: jax.Array, end: jax.Array) -> _Parts:
    """Looks up the parts of a part of a phrase, as `matching.look_up` does.

    Args:
      names: of the tree.
      text: the phrase.
      kind_P: int32 [P], what may be left out before each place; 0 where no name may begin.
      end: int32, of the part.
    """
    size = kind_P.shape[0]
    place_P = jnp.arange(size)
    starts_P = (kind_P > 0) & (place_P < end)
    slot_P = jnp.where(starts_P, jnp.cumsum(starts_P) - 1, matching.MAX_STARTS)
    # Places that are not used begin behind every end.
    start_S = jnp.full(matching.MAX_STARTS, size, jnp.int32)
    start_S = start_S.at[slot_P].set(place_P.astype(jnp.int32), mode="drop")
    kind_S = kind_P[jnp.minimum(start_S, size - 1)]

    space_P = (text.bytes_2P[0] == ord(" ")) & (place_P > start_S[0])
    ends, last = [end], end
    for _ in range(matching.MAX_TAIL):
        last = jnp.max(jnp.where(space_P & (place_P < last), place_P, 0))
        ends.append(last)
    # Where there is no further word, the end is 0, before every start.
    end_E = jnp.stack(ends)
    tail_E2 = _rows(names, text, end_E[1:] + 1, jnp.full(matching.MAX_TAIL, end))
    begin_SE, end_SE = jnp.broadcast_arrays(start_S[:, None], end_E)
    allowed_SE = begin_SE < end_SE
    row_SE2 = _rows(names, text, jnp.minimum(begin_SE, end_SE), end_SE)
    return _Parts(tail_E2, kind_S, row_SE2, allowed_SE)


def _decide(names: Names, parts: _Parts, leaf: jax.Array) -> _Verdict:
    """The verdict of `matching.look_up` on parts, for int32 `leaf`, the true one."""
    tail_E2, kind_S, row_SE2, allowed_SE = parts
    category_E2 = jnp.where(
        tail_E2 >= 0, names.category_MF[names.meaning_C[tail_E2], leaf], Category.WRONG
    )
    first = jnp.where(category_E2[:, 0] > Category.WRONG, category_E2[:, 0], category_E2[:, 1])
    used_E2 = jnp.where(tail_E2 >= 0, names.use_C[tail_E2], 0)
    modifies = jnp.any(used_E2 & _MODIFIER > 0, axis=1)
    modifies_E = jnp.pad(modifies, (1, 0))
    # `matching._least`: behind which parts the words at the end may be left out.
    least = jnp.where(first == Category.LESS_SPECIFIC, Category.SPECIFIC, _NEVER)
    any_part = jnp.any(used_E2 & (_MODIFIER | _FRAME) > 0, axis=1) | (first == Category.GENERIC)
    least_E = jnp.pad(jnp.where(any_part, Category.WRONG, least), (1, 0))

    category_SE2 = names.category_MF[names.meaning_C[row_SE2], leaf].astype(jnp.int32)
    known_SE2 = allowed_SE[..., None] & (row_SE2 >= 0) & (names.use_C[row_SE2] & _NAME > 0)
    known_SE2 &= category_SE2 >= least_E[:, None]
    s, e, q = jnp.indices(row_SE2.shape, sparse=True)
    order_SE2 = matching.rank(kind_S[s], s, e, q)
    best = jnp.argmin(jnp.where(known_SE2, order_SE2, jnp.iinfo(jnp.int32).max))
    s, e, _ = jnp.unravel_index(best, row_SE2.shape)
    category = category_SE2.reshape(-1)[best]
    with_modifier = (kind_S[s] == matching.MODIFIER) | modifies_E[e]
    category = jnp.where(with_modifier, _more_specific(category), category)
    return _Verdict(jnp.any(known_SE2), category)


def _more_specific(category: jax.Array) -> jax.Array:
    return jnp.where(category == Category.SPECIFIC, Category.MORE_SPECIFIC, category)


class Reading(NamedTuple):
    """An answer that was looked up in the tree, before it is compared with a label.

    Attributes:
      parts_3: `_Parts` of the whole phrase, of what stands before parentheses, and within them.
      has_parts: bool, there are parentheses.
      inner_kind: int32, what the words in parentheses are if they are no name.
      abstains: bool.
      fits: bool, it is short enough.
    """

    parts_3: _Parts
    has_parts: jax.Array
    inner_kind: jax.Array
    abstains: jax.Array
    fits: jax.Array


def read(names: Names, phrase: Phrase) -> Reading:
    """Looks up an answer that holds a word.

    Args:
      names: of the tree.
      phrase: of at least `abstention.MAX_BYTES`.
    """
    size = phrase.bytes_A.shape[0]
    length = jnp.minimum(phrase.length, size)
    place_P = jnp.arange(size + 1)
    # A space behind the end: the inner part may consist of modifiers alone.
    closed_P = jnp.pad(phrase.bytes_A, (0, 1))
    closed_P = jnp.where(place_P == length, jnp.uint8(ord(" ")), closed_P)
    inner = jnp.where(phrase.has_parts, phrase.inner_start, length)
    label_MP = names.automata.labels(
        closed_P,
        (_OPENER, _OPENER, _ABSTENTION),
        jnp.stack([jnp.zeros_like(inner), inner, jnp.zeros_like(inner)]),
        jnp.stack([length + 1, length + 1, length]),
    )
    # A name may begin where the part does, or behind a space.
    behind_P = jnp.pad(closed_P[:-1] == ord(" "), (1, 0))
    before_MP = jnp.pad(label_MP[:2, :-1], ((0, 0), (1, 0)))
    kind_P = jnp.where(place_P == 0, matching.FRAME, jnp.where(behind_P, before_MP[0], 0))
    inside_P = behind_P & (place_P > inner)
    inner_kind_P = jnp.where(inside_P, before_MP[1], 0)
    inner_kind_P = jnp.where(place_P == inner, matching.FRAME, inner_kind_P)

    text = _text(names, phrase.bytes_A, length)
    outer_end = jnp.where(phrase.has_parts, phrase.outer_end, length)
    kinds_3P = jnp.stack([kind_P, kind_P, inner_kind_P])[:, :-1]
    ends_3 = jnp.stack([length, outer_end, length])
    over_parts = jax.vmap(_look_up, in_axes=(None, None, 0, 0))
    return Reading(
        parts_3=over_parts(names, text, kinds_3P, ends_3),
        has_parts=phrase.has_parts,
        inner_kind=label_MP[1, -1],
        abstains=(label_MP[2, -1] > 0) & (length <= abstention.MAX_BYTES),
        fits=phrase.length <= size,
    )


def compare(names: Names, reading: Reading, leaf: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The category of an answer, and whether the tree decided.

    Args:
      names: of the tree.
      reading: of the answer.
      leaf: int32, the true one.

    Returns:
      int32 `Category`; and bool, False where the answer is WRONG because the tree knows no better.
    """
    found_3 = jax.vmap(_decide, in_axes=(None, 0, None))(names, reading.parts_3, leaf)
    whole, outer, second = (_Verdict(found_3.known[i], found_3.category[i]) for i in range(3))

    holds = jnp.minimum(outer.category, second.category) > Category.WRONG
    both = jnp.where(holds, jnp.maximum(outer.category, second.category), Category.WRONG)
    both = jnp.where(second.known, both, outer.category)
    modifies = reading.inner_kind == matching.MODIFIER
    both = jnp.where(modifies, _more_specific(outer.category), both)
    both_known = reading.has_parts & outer.known & ((reading.inner_kind > 0) | second.known)

    category = jnp.where(reading.abstains, Category.ABSTAIN, Category.WRONG)
    category = jnp.where(both_known, both, category)
    category = jnp.where(whole.known, whole.category, category)
    known = reading.fits & (whole.known | both_known | reading.abstains)
    return jnp.where(reading.fits, category, Category.WRONG).astype(jnp.int32), known
