"""The order in which parts of an answer are looked up among the names of a label tree.

An answer ("a photo of a male house sparrow bird") is looked up as it is, and with words left out
that say nothing, or not more than a form, of what they stand beside. What may be left out:

  - in front: a frame ("a photo of", an article, the tree's own `frames`) and after it any number
    of the tree's `modifiers` ("male");
  - at the end: up to `MAX_TAIL` words that are a generic name of the true label ("bird"), a
    modifier, or a frame ("in a vase"); behind a name that is right, also a less specific name of
    the true label ("cake" in "tiramisu cake"; but "oriental" and "shorthair", both less specific
    for a Siamese, make another cat).

Modifiers and frames that begin with a preposition ("with olives") only stand at the end.

Each of these parts is looked up as it is spelt, and `squeezed`: without spaces. `rank` orders them,
and the first that is a name of the tree decides. The device follows the same `rank` and the same
two expressions of `openings`.
"""

import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from speciarl_jax.verifiers import parsing
from speciarl_jax.verifiers.category import Category
from speciarl_jax.verifiers.label_tree import word_forms

# Places at which a part of an answer may begin; further ones are not looked at.
MAX_STARTS = 8
# Words at the end that may be left out.
MAX_TAIL = 5
# What begins with one of these stands behind a name, never in front.
_BEHIND = ("with ", "in ", "on ", "topped ", "served ", "garnished ", "drizzled ", "dusted ")
# Kinds of openings.
FRAME, MODIFIER = 1, 2

_ARTICLE = "((a|an|the) )?"
_LOOKS = (
    "((close ?up|blurry|blurred|black and white|colou?r|colou?red|macro|stock|detailed|cropped"
    "|beautiful|high resolution|low resolution|high quality|low quality|professional|single) )*"
)
_IMAGE = "(photo|photograph|picture|image|pic|snapshot|shot|close ?up|portrait|view|macro)"
_GENERAL_FRAME = (
    f"(this is |{_ARTICLE}{_LOOKS}{_IMAGE}( {_IMAGE})? (of|showing|depicting) "
    f"|(this|the) {_IMAGE} (shows|depicts|is of) )?"
)


def openings(frames: Iterable[str], modifiers: Iterable[str]) -> tuple[str, str]:
    """Expressions of what may stand in front of a name: a frame, and a frame with modifiers.

    Args:
      frames: of the tree.
      modifiers: of the tree.

    Returns:
      Expressions of `re` and `dfa`, numbered `FRAME` and `MODIFIER`. They accept phrases with a
      space at the end; the first also accepts "".
    """
    framed = f"{_GENERAL_FRAME}({_ARTICLE}({_either(frames)}) )?{_ARTICLE}"
    return framed, f"{framed}(({_either(modifiers)}) )+"


def _either(phrases: Iterable[str]) -> str:
    """Returns alternatives of phrases, also written without their spaces."""
    keys = {parsing.phrase(p) for p in phrases}
    keys |= {key.replace(b" and ", b" & ") for key in keys}
    keys |= {word_forms.squeezed(key) for key in keys}
    # A control character, which no phrase holds, where there is none.
    return "|".join(sorted(key.decode("ascii") for key in keys if key)) or "\x01"


def rank(kind, start, tail, squeezed):
    """Order of a part of an answer, from 0; of integers, or of arrays of them.

    Parts with fewer modifiers left out come first, then those with fewer words left out at the end,
    then those that are spelt as the name, then longer ones.

    Args:
      kind: `FRAME` or `MODIFIER`, what is left out in front.
      start: which of the `MAX_STARTS` places.
      tail: words left out at the end.
      squeezed: 1 if compared without spaces, else 0.
    """
    level = start * (kind == MODIFIER)
    return ((level * (MAX_TAIL + 1) + tail) * 2 + squeezed) * MAX_STARTS + start


class Found(NamedTuple):
    """What a part of an answer means for a leaf.

    Attributes:
      category: `WRONG` where it only names other leaves.
      match: the name, for people.
    """

    category: Category
    match: str


class Opener:
    """Splits frames and modifiers off the beginning and the end of phrases.

    Attributes:
      expressions: of `openings`.
      modifiers: keys of modifiers and their forms.
      frames: keys of the frames of the tree, and their forms.
    """

    def __init__(self, frames: Iterable[str], modifiers: Iterable[str]):
        """Compiles the expressions.

        Raises:
          ValueError: a frame or modifier has a letter beyond the ASCII ones and accented Latin.
        """
        modifiers, frames = list(modifiers), list(frames)
        for text in (*frames, *modifiers):
            if not parsing.phrase(text).isascii() or b"," in parsing.phrase(text):
                raise ValueError(
                    f"the frame or modifier {text!r} has a list mark or a character of another "
                    "script; write plain words"
                )
        self.expressions = openings(
            (text for text in frames if not text.startswith(_BEHIND)),
            (text for text in modifiers if not text.startswith(_BEHIND)),
        )
        self.modifiers = _keys(modifiers)
        self.frames = _keys(frames)
        self._matchers = [re.compile(e.encode()) for e in self.expressions]

    def kind(self, opening: bytes) -> int:
        """`FRAME` or `MODIFIER` if the words may stand in front of a name, otherwise 0.

        `opening` ends with a space, or is empty.
        """
        for number, matcher in enumerate(self._matchers, 1):
            if matcher.fullmatch(opening):
                return number
        return 0

    def starts(self, phrase: bytes) -> list[tuple[int, int]]:
        """Returns the first `MAX_STARTS` places where a name may begin, with what is before them.

        The first is (0, `FRAME`).
        """
        places = [0, *(i + 1 for i, byte in enumerate(phrase) if byte == ord(" "))]
        found = ((at, self.kind(phrase[:at])) for at in places)
        return [(at, kind) for at, kind in found if kind][:MAX_STARTS]


def _keys(texts: Iterable[str]) -> frozenset[bytes]:
    keys = frozenset().union(*map(word_forms.forms, texts))
    return keys | set(map(word_forms.squeezed, keys))


def look_up(
    phrase: bytes,
    relation: Mapping[bytes, tuple[Category, str]],
    names: frozenset[bytes],
    opener: Opener,
) -> Found | None:
    """The verdict on a phrase without parentheses, or None where no part of it is a name.

    Args:
      phrase: `parsing.phrase` of an answer.
      relation: names around the true leaf.
      names: the names of all leaves.
      opener: of the tree.
    """
    ends = [_End(len(phrase), b"", "", Category.WRONG)]
    at = len(phrase)
    for _ in range(MAX_TAIL):
        at = phrase.rfind(b" ", 0, at)
        if at < 0:
            break
        ends.append(_End(at, phrase[at + 1 :], *_beside(phrase[at + 1 :], relation, opener)))
    best = None
    for number, (start, kind) in enumerate(opener.starts(phrase)):
        for tail, end in enumerate(ends):
            if end.at <= start or end.least is None:
                continue
            part = phrase[start : end.at]
            for squeezed, key in enumerate((part, word_forms.squeezed(part))):
                category = relation[key][0] if key in relation else Category.WRONG
                if key in names and category >= end.least:
                    order = rank(kind, number, tail, squeezed)
                    part_found = (order, start, kind, end, key)
                    best = min(best or part_found, part_found)
    return _found(phrase, relation, *best[1:]) if best else None


class _End(NamedTuple):
    """Where a part may end: what is left out there, and behind which names.

    Attributes:
      at: the place.
      words: behind it.
      what: they are, for people.
      least: the lowest category that the part must have; None where it may not end.
    """

    at: int
    words: bytes
    what: str
    least: Category | None


def _found(phrase, relation, start, kind, end, key) -> Found:
    category, match = relation.get(key, (Category.WRONG, "name of another label"))
    opening = re.sub(rb"^(a|an|the) ", b"", phrase[:start]).decode().strip()
    tail = end.words.decode("utf-8", "replace")
    if kind == MODIFIER:
        match = f"modifier {opening!r} before {match}"
    elif opening:
        match = f"frame {opening!r} before {match}"
    if tail:
        match = f"{end.what} {tail!r} after {match}"
    if (kind == MODIFIER or end.what == "modifier") and category == Category.SPECIFIC:
        category = Category.MORE_SPECIFIC
    return Found(category, match)


def _beside(
    words: bytes, relation: Mapping[bytes, tuple[Category, str]], opener: Opener
) -> tuple[str, Category | None]:
    """What words at the end are, and the lowest category of a part behind which they are left out.

    Words are looked up as they are spelt before squeezed, as everywhere.
    """
    spelt = (words, word_forms.squeezed(words))
    for what, keys in (("modifier", opener.modifiers), ("frame", opener.frames)):
        if any(key in keys for key in spelt):
            return what, Category.WRONG
    category = next((relation[key][0] for key in spelt if key in relation), Category.WRONG)
    if category == Category.GENERIC:
        return "generic name", Category.WRONG
    if category == Category.LESS_SPECIFIC:
        return "broader name", Category.SPECIFIC
    return "", None


def look_up_both(
    outer: bytes,
    inner: bytes,
    relation: Mapping[bytes, tuple[Category, str]],
    names: frozenset[bytes],
    opener: Opener,
) -> Found | None:
    """The verdict on "outer (inner)", which name the same thing twice; None where one is no name.

    Both must hold, and the better one counts. `inner` may also be modifiers, or a frame.
    """
    found = look_up(outer, relation, names, opener)
    if found is None:
        return None
    kind = opener.kind(inner + b" ")
    if kind == MODIFIER:
        category = Category.MORE_SPECIFIC if found.category == Category.SPECIFIC else found.category
        return Found(category, f"modifier {inner.decode()!r} after {found.match}")
    second = look_up(inner, relation, names, opener)
    if second is None and kind == FRAME:
        return Found(found.category, f"frame {inner.decode()!r} after {found.match}")
    if second is None:
        return None
    holds = min(found.category, second.category) > Category.WRONG
    category = max(found.category, second.category) if holds else Category.WRONG
    return Found(category, f"{found.match} and {second.match}")
