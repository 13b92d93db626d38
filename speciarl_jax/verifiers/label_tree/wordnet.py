"""WordNet's noun files as plain text, `data.noun` and `index.noun`: wndb(5WN) of Princeton WordNet.

A line of `data.noun` is a synset: offset, lexicographer file, type, number of words in hexadecimal,
words with a sense number each, number of pointers, pointers of four fields each, and a gloss behind
a bar. A line of `index.noun` is a lemma with the offsets of its synsets, the most frequent first.
Lines that begin with a space are the licence.
"""

import dataclasses
import os
import pathlib
from collections.abc import Iterator, Sequence

_UP, _DOWN = ("@", "@i"), ("~", "~i")


@dataclasses.dataclass(frozen=True)
class Synset:
    """A concept.

    Attributes:
      offset: its number in `data.noun`.
      names: its words, underscores as spaces, in the order of the file.
      up: offsets of its hypernyms.
      down: offsets of its hyponyms.
    """

    offset: int
    names: tuple[str, ...]
    up: tuple[int, ...]
    down: tuple[int, ...]


class Nouns:
    """The nouns of WordNet."""

    def __init__(self, folder: str | os.PathLike):
        """Reads both files.

        Raises:
          ValueError: a file is missing, or a line is malformed; names file and line.
        """
        folder = pathlib.Path(folder)
        self._synsets = {s.offset: s for s in _parse(folder / "data.noun", _synset)}
        self._senses = dict(_parse(folder / "index.noun", _lemma))

    def synset(self, word: str) -> Synset:
        """The synset of a word: its first sense, or sense 4 of "mouse#4".

        Raises:
          ValueError: no such word or sense.
        """
        lemma, _, number = word.partition("#")
        senses = self._senses.get(lemma.strip().lower().replace(" ", "_"), ())
        if number and not number.isdecimal():
            raise ValueError(f"{word!r}: behind # stands the number of a sense, as in 'mouse#4'")
        chosen = int(number or 1)
        if not 1 <= chosen <= len(senses):
            raise ValueError(
                f"WordNet has {len(senses)} noun senses of {lemma.strip()!r} and {word!r} asks for "
                f"sense {chosen}; use another word or sense"
            )
        return self.at(senses[chosen - 1])

    def at(self, offset: int) -> Synset:
        """The synset with this offset.

        Raises:
          ValueError: `data.noun` has no such synset.
        """
        if offset not in self._synsets:
            raise ValueError(
                f"data.noun has no synset {offset:08d}, which is pointed to; do data.noun and "
                "index.noun belong to one version of WordNet?"
            )
        return self._synsets[offset]

    def above(self, synset: Synset) -> list[list[Synset]]:
        """All hypernyms in levels, nearest first; each in the level of its shortest way."""
        return list(self._levels(synset, "up"))

    def below(self, synset: Synset) -> list[list[Synset]]:
        """All hyponyms in levels, nearest first."""
        return list(self._levels(synset, "down"))

    def _levels(self, synset: Synset, way: str) -> Iterator[list[Synset]]:
        seen, level = {synset.offset}, [synset]
        while True:
            following = [n for s in level for n in getattr(s, way)]
            following = [n for n in dict.fromkeys(following) if n not in seen]
            if not following:
                return
            seen.update(following)
            level = [self.at(n) for n in following]
            yield level


def _parse(path: pathlib.Path, parse):
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(
            f"{path}: cannot be read ({error}); give the folder `dict` of a WordNet download"
        ) from None
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.startswith(" "):
            continue
        try:
            yield parse(line)
        except (ValueError, IndexError):
            raise ValueError(
                f"{path}, line {number}: not in WordNet's format: {line[:60]!r}"
            ) from None


def _synset(line: str) -> Synset:
    fields = line.split(" | ", 1)[0].split()
    words = int(fields[3], 16)
    names = [_plain(name) for name in fields[4 : 4 + 2 * words : 2]]
    at = 4 + 2 * words
    pointers = _rows(fields[at + 1 :], int(fields[at]), 4)
    if fields[2] != "n" or len(names) != words or not names:
        raise ValueError
    # Pointers between single words, or to other parts of speech, are no hypernyms of nouns.
    nouns = [(kind, int(offset)) for kind, offset, part, _ in pointers if part == "n"]
    return Synset(
        offset=int(fields[0]),
        names=tuple(dict.fromkeys(names)),
        up=tuple(offset for kind, offset in nouns if kind in _UP),
        down=tuple(offset for kind, offset in nouns if kind in _DOWN),
    )


def _lemma(line: str) -> tuple[str, tuple[int, ...]]:
    fields = line.split()
    count, pointers = int(fields[2]), int(fields[3])
    senses = fields[4 + pointers + 2 :]
    if fields[1] != "n" or len(senses) != count:
        raise ValueError
    return fields[0], tuple(map(int, senses))


def _plain(word: str) -> str:
    return word.replace("_", " ")


def _rows(fields: Sequence[str], count: int, width: int) -> list[Sequence[str]]:
    rows = [fields[i : i + width] for i in range(0, width * count, width)]
    if any(len(row) != width for row in rows) or len(fields) != width * count:
        raise ValueError
    return rows
