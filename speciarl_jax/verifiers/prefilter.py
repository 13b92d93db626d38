"""What a judge is never asked: answers whose verdict is stated beforehand, on host and device.

A language model can be talked into a verdict, so it only ever sees what could be one label. In this
order, and compared with the true label, an answer

  - that cannot be read (`parsing.extract`) or holds no word is UNPARSED;
  - whose `parsing.key` is that of the true label is for the judge, whatever is said below;
  - that declines (`abstention`) is ABSTAIN;
  - with more than `max_words` words or `max_answer_bytes` bytes is WRONG (sentences, long texts);
  - with a mark inside that lists, hedges or opens markup ("eagle/hawk", "bird (eagle)", "a: b",
    line breaks, tabs, quotes around JSON keys, tags, role markers) is WRONG;
  - with a full stop inside is WRONG ("sparrow. finch", "1. sparrow"), but not after a single
    letter or an abbreviation ("St. Bernard") nor within a number ("1.5");
  - with a character beyond ASCII and the Latin letters U+00C0 to U+017F (zero-width and look-alike
    characters, other scripts) is WRONG;
  - with a word or sign that joins two labels ("or", "and", a spaced dash) or speaks to the judge
    ("ignore", "instructions", the names of verdicts) is WRONG;
  - that names two labels of the data set ("house sparrow song sparrow") is WRONG.

A mark, character or word that the true label itself holds is no reason to refuse an answer. All
others are for the judge to decide, in the form of `parsing.normalize`: letters, digits, dashes and
spaces, with nothing in it that could end a JSON string or a turn of a chat.
"""

from collections.abc import Mapping, Sequence

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from speciarl_jax.verifiers import abstention, label_mentions, parsing, parsing_on_device
from speciarl_jax.verifiers.category import Category
from speciarl_jax.verifiers.dfa_on_device import Automata

# Not a category: the judge has to be asked.
ASK = -2

# Between the first and the last word of an answer. Outside of them any punctuation is trimmed.
MARKS = parsing.LIST_MARKS + b'\n\r\t\v\f\x00()[]{}<>"`=:?!\\*~^#'
# In the form of `parsing.normalize`, with a space at both ends.
JOINS = tuple(f" {word} ".encode() for word in ("or", "and", "either", "vs", "versus", "-")) + (
    b"--",
)
SPEAKS = tuple(
    f" {word} ".encode()
    for word in (
        *("ignore", "disregard", "instruction", "instructions", "prompt", "verdict", "assistant"),
        *("specific", "generic", "abstain", "prediction", "category", "correct", "accept"),
    )
)
# Signs beyond ASCII that list or point: dots, dashes, bullets and arrows. A true label may hold
# other characters that begin with the same byte.
SIGNS = tuple(
    sign.encode()
    for sign in (
        *("\u00b7", "\u2010", "\u2011", "\u2012", "\u2013", "\u2014", "\u2015", "\u2022", "\u2023"),
        *("\u2026", "\u2043", "\u2190", "\u2192", "\u2194", "\u21d2", "\u2219", "\u22c5", "\u25a0"),
        *("\u25aa", "\u25b6", "\u25ba", "\u25cb", "\u25cf", "\u25e6", "\u2794", "\u279c", "\u27a4"),
    )
)
PATTERNS = JOINS + SPEAKS + SIGNS
# Before a full stop that ends no item of a list; so does any single letter.
ABBREVIATIONS = "st mt ft pt dr mr mrs ms jr sr no ca cf sp ssp spp var cv mk".split()
_ABBREVIATION_BYTES = 4  # one more than the longest has
# First bytes of the letters U+00C0 to U+017F in UTF-8; all their second bytes are allowed.
_LATIN = (0xC3, 0xC4, 0xC5)


def _mark_table() -> np.ndarray:
    """bool [256]: bytes that no label holds."""
    table = np.zeros(256, bool)
    table[list(MARKS)] = True
    table[0xC0:] = True
    table[list(_LATIN)] = False
    return table


def normal_table() -> np.ndarray:
    """uint8 [256]: `parsing.normalize` of each byte, runs of spaces left as they are."""
    table = np.full(256, ord(" "), np.uint8)
    for byte in range(256):
        kept = parsing.normalize(chr(byte)) if byte < 0x80 else ""
        table[byte] = byte if byte >= 0x80 else ord(kept or " ")
    return table


_MARK_TABLE, _NORMAL_TABLE = _mark_table(), normal_table()


def _is_malformed(text_L, inside_L, xp):
    """Whether the bytes inside are no UTF-8: a byte that continues nothing, or a cut character."""
    lead = xp.where(inside_L, text_L, 0)
    needed_L = (lead >= 0xC0) * 1 + (lead >= 0xE0) * 1 + (lead >= 0xF0) * 1
    padded = xp.concatenate([xp.zeros(3, needed_L.dtype), needed_L, xp.zeros(1, needed_L.dtype)])
    size = text_L.shape[0] + 1
    # One place beyond the end, where a character that is cut off still wants a byte.
    expected = xp.zeros(size, bool)
    for back in (1, 2, 3):
        expected |= padded[3 - back : 3 - back + size] >= back
    continues = xp.concatenate([(lead >= 0x80) & (lead < 0xC0), xp.zeros(1, bool)])
    return xp.any(expected != continues)


def _holds_mark(text_L, inside_L, allowed_256, xp):
    forbidden_256 = xp.asarray(_MARK_TABLE) & ~allowed_256
    return xp.any(inside_L & forbidden_256[text_L])


def _word_before(normal_L, xp):
    """uint32 [L]: the last bytes of the word that ends before each byte, the nearest lowest."""
    going_L, code_L = xp.ones(normal_L.shape, bool), xp.zeros(normal_L.shape, xp.uint32)
    for back in range(1, _ABBREVIATION_BYTES + 1):
        byte_L = xp.concatenate([xp.full(back, ord(" "), xp.uint8), normal_L[:-back]])
        byte_L = byte_L[: normal_L.shape[0]]
        going_L = going_L & _is_word(byte_L, xp)
        code_L = code_L + xp.where(going_L, byte_L, 0).astype(xp.uint32) * (256 ** (back - 1))
    return code_L


def _abbreviations() -> np.ndarray:
    """uint32: `_word_before` of the words after which a full stop may stand."""
    words = [*ABBREVIATIONS, *map(chr, range(ord("a"), ord("z") + 1))]
    return np.array([int.from_bytes(word.encode(), "big") for word in words], np.uint32)


def _holds_stop(text_L, normal_L, inside_L, xp):
    """Whether a full stop inside parts two items: neither an abbreviation's nor a number's."""
    short_L = xp.isin(_word_before(normal_L, xp), xp.asarray(_abbreviations()))
    digit_L = (text_L >= ord("0")) & (text_L <= ord("9"))
    edge = xp.zeros(1, bool)
    number_L = xp.concatenate([edge, digit_L[:-1]]) & xp.concatenate([digit_L[1:], edge])
    return xp.any((text_L == ord(".")) & inside_L & ~short_L & ~number_L)


def screen(
    content: str | None,
    truth: str,
    *,
    labels: Mapping[bytes, int],
    max_words: int,
    max_answer_bytes: int,
) -> Category | None:
    """The stated verdict on an answer, or None: ask the judge.

    Args:
      content: what stands in the answer tags (`parsing.extract`); None if nothing could be read.
      truth: the name of the true label.
      labels: `label_mentions.index` of the names of all labels.
      max_words: the most words a label may have.
      max_answer_bytes: the most bytes of the form that the judge is shown.
    """
    if content is not None and parsing.too_long(content):
        return Category.WRONG
    phrase = b"" if content is None else parsing.phrase(content)
    if not phrase:
        return Category.UNPARSED
    if phrase in _with_articles(truth) and len(phrase) <= max_answer_bytes:
        return None
    if abstention.abstains(phrase):
        return Category.ABSTAIN
    normal = f" {parsing.normalize(content)} ".encode("utf-8", "surrogatepass")
    if normal.count(b" ") - 1 > max_words or len(normal) - 2 > max_answer_bytes:
        return Category.WRONG
    raw = content.encode("utf-8", "surrogatepass")
    text_L = np.frombuffer(raw, np.uint8)
    normal_L = _NORMAL_TABLE[text_L]
    word_L = _is_word(normal_L, np)
    inside_L = np.maximum.accumulate(word_L) & np.maximum.accumulate(word_L[::-1])[::-1]
    allowed_256, allowed_W = truth_tables([truth])
    if _holds_mark(text_L, inside_L, allowed_256[0], np) or _is_malformed(text_L, inside_L, np):
        return Category.WRONG
    if not allowed_256[0, ord(".")] and _holds_stop(text_L, normal_L, inside_L, np):
        return Category.WRONG
    found = [p in normal and not ok for p, ok in zip(PATTERNS, allowed_W[0], strict=True)]
    listed = label_mentions.names_two(phrase[:max_answer_bytes], labels)
    return Category.WRONG if listed or any(found) else None


def _is_word(normal_L, xp):
    return (normal_L != ord(" ")) & (normal_L != ord("-"))


def truth_tables(truths: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """What the true labels themselves hold: bool bytes [F, 256] and bool `PATTERNS` [F, W]."""
    allowed_F256 = np.zeros((len(truths), 256), bool)
    allowed_FW = np.zeros((len(truths), len(PATTERNS)), bool)
    for row, name in enumerate(truths):
        allowed_F256[row, list(name.encode("utf-8", "surrogatepass"))] = True
        normal = f" {parsing.normalize(name)} ".encode("utf-8", "surrogatepass")
        # Words that a label joins by dashes may also stand apart.
        forms = normal, normal.replace(b"-", b" ")
        allowed_FW[row] = [any(pattern in form for form in forms) for pattern in PATTERNS]
    return allowed_F256, allowed_FW


def _with_articles(name: str) -> list[bytes]:
    """The phrases of a name without an article and with each."""
    key = parsing.key(name)
    return [key, *(article + b" " + key for article in parsing.ARTICLES)]


def _truth_rows(truths: Sequence[str], most: int, size: int) -> np.ndarray:
    """uint8 [F, 4, size], `_with_articles` padded with zeros; only zeros for more bytes than most.

    An answer of no bytes is UNPARSED, so zeros equal none.
    """
    table = np.zeros((len(truths), 1 + len(parsing.ARTICLES), size), np.uint8)
    for rows, name in zip(table, truths, strict=True):
        for row, phrase in zip(rows, _with_articles(name), strict=True):
            if len(phrase) <= most:
                row[: len(phrase)] = np.frombuffer(phrase, np.uint8)
    return table


@flax.struct.dataclass
class Screen:
    """`screen` on a device; F true labels.

    Attributes:
      allowed_F256: bool, bytes that a true label holds.
      allowed_FW: bool, members of `PATTERNS` that it holds.
      typography: for phrases.
      abstentions: the automaton of those who decline.
      truth_F4A: uint8, phrases of the true labels, with each article and without, zero-padded;
        zeros for one that is too long.
      mentions: finds answers that name two labels.
      max_words: static.
      max_answer_bytes: static, A.
      tags: static, as for `parsing.extract`.
    """

    allowed_F256: jax.Array
    allowed_FW: jax.Array
    typography: parsing_on_device.Typography
    abstentions: Automata
    truth_F4A: jax.Array
    mentions: label_mentions.Mentions
    max_words: int = flax.struct.field(pytree_node=False)
    max_answer_bytes: int = flax.struct.field(pytree_node=False)
    tags: str = flax.struct.field(pytree_node=False)

    @classmethod
    def create(
        cls,
        truths: Sequence[str],
        *,
        labels: Mapping[bytes, int],
        max_words: int,
        max_answer_bytes: int,
        tags: str,
    ) -> "Screen":
        """Tables for the names of the true labels; the other arguments are those of `screen`.

        Raises:
          ValueError: a limit that no label of the data set could meet.
        """
        check_limits(truths, max_words=max_words, max_answer_bytes=max_answer_bytes)
        allowed_F256, allowed_FW = truth_tables(truths)
        size = max(max_answer_bytes, abstention.MAX_BYTES)
        return cls(
            allowed_F256=jnp.asarray(allowed_F256),
            allowed_FW=jnp.asarray(allowed_FW),
            typography=parsing_on_device.Typography.create(),
            abstentions=Automata.create(abstention.automaton()),
            truth_F4A=jnp.asarray(_truth_rows(truths, max_answer_bytes, size)),
            mentions=label_mentions.Mentions.create(labels, size),
            max_words=max_words,
            max_answer_bytes=max_answer_bytes,
            tags=tags,
        )

    def __call__(
        self, text_L: jax.Array, total: jax.Array, label: jax.Array
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """The stated verdict on one response.

        Args:
          text_L: uint8 bytes of the response, zero beyond the end.
          total: int32 number of bytes of the whole response; above L: it was cut, and is UNPARSED.
          label: int32 index of the true label.

        Returns:
          int32 `Category` or `ASK`; uint8 [L], the bytes of `parsing.normalize` in the place of the
          bytes that they came from; and bool [L], which of these are kept.
        """
        found, start, stop = parsing_on_device.answer_span(text_L, tags=self.tags)
        phrase = parsing_on_device.phrase_bytes(
            self.typography, text_L, start, stop, self.truth_F4A.shape[-1]
        )
        place_A = jnp.arange(phrase.bytes_A.shape[0])
        normal_L, kept_L = normal_bytes(text_L, start, stop)
        label_MA = self.abstentions.labels(
            phrase.bytes_A, (0,), jnp.zeros(1, jnp.int32), phrase.length[None]
        )
        abstains = (label_MA[0, -1] > 0) & (phrase.length <= abstention.MAX_BYTES)
        fits = phrase.length <= self.max_answer_bytes
        equal = jnp.any(jnp.all(self.truth_F4A[label] == phrase.bytes_A, axis=1)) & fits
        word_L = _is_word(normal_L, jnp) & (jnp.arange(text_L.shape[0]) >= start)
        word_L &= jnp.arange(text_L.shape[0]) < stop
        inside_L = jax.lax.cummax(word_L.astype(jnp.int8)) > 0
        inside_L &= jax.lax.cummax(word_L.astype(jnp.int8), reverse=True) > 0
        wrong = jnp.sum(kept_L & (normal_L == ord(" "))) + 1 > self.max_words
        wrong |= jnp.sum(kept_L) > self.max_answer_bytes
        wrong |= phrase.length == parsing_on_device.TOO_LONG
        wrong |= _holds_mark(text_L, inside_L, self.allowed_F256[label], jnp)
        wrong |= _is_malformed(text_L, inside_L, jnp)
        stops = _holds_stop(text_L, normal_L, inside_L, jnp)
        wrong |= stops & ~self.allowed_F256[label, ord(".")]
        wrong |= self._holds_pattern(normal_L, kept_L, label)
        wrong |= self.mentions(jnp.where(place_A < self.max_answer_bytes, phrase.bytes_A, 0))
        category = jnp.where(wrong, int(Category.WRONG), ASK)
        category = jnp.where(abstains, int(Category.ABSTAIN), category)
        category = jnp.where(equal, ASK, category)
        parsed = found & (total <= text_L.shape[0]) & (phrase.length > 0)
        category = jnp.where(parsed, category, int(Category.UNPARSED))
        return category.astype(jnp.int32), normal_L, kept_L

    def _holds_pattern(self, normal_L, kept_L, label):
        size = self.max_answer_bytes
        slot_L = jnp.where(kept_L, jnp.cumsum(kept_L), size + 2)
        padded = jnp.full(size + 2, ord(" "), jnp.uint8).at[slot_L].set(normal_L, mode="drop")
        hit = [parsing_on_device.find(padded, pattern.decode())[0] > 0 for pattern in PATTERNS]
        return jnp.any(jnp.stack(hit) & ~self.allowed_FW[label])


def normal_bytes(
    text_L: jax.Array, start: jax.Array, stop: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """`parsing.normalize` of the bytes in [start, stop), each in its place.

    Returns:
      uint8 [L] and bool [L], which bytes are kept: runs of spaces collapse to their first.
    """
    normal_L = jnp.asarray(_NORMAL_TABLE)[text_L]
    place_L = jnp.arange(text_L.shape[0], dtype=jnp.int32)
    solid_L = (normal_L != ord(" ")) & (place_L >= start) & (place_L < stop)
    first = jnp.argmax(solid_L)
    last = jnp.max(jnp.where(solid_L, place_L, -1))
    before_L = jnp.concatenate([jnp.full(1, ord(" "), normal_L.dtype), normal_L[:-1]])
    kept_L = ~((normal_L == ord(" ")) & (before_L == ord(" ")))
    return normal_L, kept_L & (place_L >= first) & (place_L <= last)


def check_limits(truths: Sequence[str], *, max_words: int, max_answer_bytes: int) -> None:
    """Refuses limits that a true label itself exceeds.

    Raises:
      ValueError: names the label and the limit.
    """
    for name in truths:
        normal = parsing.normalize(name)
        words, size = normal.count(" ") + 1, len(normal.encode("utf-8", "surrogatepass"))
        for what, value, limit in (
            ("max_words", words, max_words),
            ("max_answer_bytes", size, max_answer_bytes),
        ):
            if value > limit:
                raise ValueError(
                    f"the label {name!r} has {value} {what.removeprefix('max_')}, and {what} is "
                    f"{limit}; raise {what}, or no answer could ever equal the label"
                )
