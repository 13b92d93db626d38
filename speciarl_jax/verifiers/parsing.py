"""Finds the label in a response and brings it into the form in which names are compared.

The rules speak of UTF-8 bytes, so that `parsing_on_device` can follow them to the letter. First,
characters that differ from an ASCII one by typography alone are folded to it (`FOLDED`): quotes,
hyphens, spaces, and Latin letters with accents. ASCII bytes are then looked at one by one. A byte
>= 0x80 that remains is part of a word, whatever it is. Hence zero-width characters, look-alike
letters and undecodable bytes are never dropped or mapped: an answer that holds one equals no name,
unless the name holds it too.
"""

import re
import unicodedata
import zlib

THINK_OPEN, THINK_CLOSE = "<think>", "</think>"
ANSWER_OPEN, ANSWER_CLOSE = "<answer>", "</answer>"
# What a response must hold; see `extract`.
TAGS = ("think", "answer", "first")

ASCII_SPACE = " \t\n\r\v\f"

# Between two words these mark an enumeration ("eagle, hawk", "eagle/hawk"). They all become one
# list mark, which stays in the key: "sea, lion" must not collapse into the name "sea lion".
LIST_MARKS = b",;/|+"
LIST_MARK = b","
# Joins two names as well, but it also spells the "and" inside of one: "fish & chips".
AMPERSAND = b"&"
ARTICLES = (b"a", b"an", b"the")
# A longer answer is no label, whatever it says.
MAX_TEXT_BYTES = 512

# With a space beside them these mark an enumeration; between two words they are a hyphen.
LONG_DASHES = "\u2012\u2013\u2014\u2015\u2212"
# Marks that follow their letter in decomposed text. They are dropped. The joiner U+034F, which is
# invisible, is not among them.
COMBINING = "".join(map(chr, [*range(0x300, 0x30D), 0x323, 0x327, 0x328, 0x331]))
# Latin letters whose stroke is no accent for Unicode.
_STROKES = {"\u00f8": "o", "\u00d8": "O", "\u0111": "d", "\u0110": "D", "\u0142": "l"}


def folded() -> dict[str, str]:
    """Maps characters beyond ASCII to the one ASCII character that they stand for."""
    table = dict.fromkeys("\u00a0\u202f\u3000" + "".join(map(chr, range(0x2000, 0x200B))), " ")
    table |= dict.fromkeys("\u2018\u2019\u201a\u2032", "'")
    table |= dict.fromkeys("\u201c\u201d\u201e\u2033\u00ab\u00bb", '"')
    table |= dict.fromkeys("\u2010\u2011", "-") | _STROKES | {"\u0141": "L"}
    for code in (*range(0xC0, 0x180), *range(0x1E00, 0x1F00)):
        base, *marks = unicodedata.normalize("NFD", chr(code))
        if base.isascii() and marks:
            table[chr(code)] = base
    return table


FOLDED = folded()


def key_table() -> bytes:
    """256 bytes that map each byte of an answer for `key`.

    Letters to lower case; digits, dashes, "&" and bytes >= 0x80 to themselves; `LIST_MARKS` to the
    list mark; all else to a space.
    """
    table = bytearray(b" " * 256)
    for byte in range(256):
        char = bytes([byte])
        if char.isalnum() or byte >= 0x80 or char == b"-" or char == AMPERSAND:
            table[byte] = char.lower()[0]
        elif char in LIST_MARKS:
            table[byte] = LIST_MARK[0]
    return bytes(table)


_KEY_TABLE = key_table()
_FOLD = str.maketrans(FOLDED)
_TO_HYPHEN = str.maketrans(dict.fromkeys(LONG_DASHES, "-"))
_DROP = str.maketrans(dict.fromkeys(COMBINING))
_SPACED_DASH = re.compile(f"(?<=[{ASCII_SPACE}])[{LONG_DASHES}]|[{LONG_DASHES}](?=[{ASCII_SPACE}])")
_INNER_APOSTROPHE = re.compile(r"(?<=[A-Za-z0-9\x80-\U0010ffff])'(?=[A-Za-z0-9\x80-\U0010ffff])")
_ARTICLE = re.compile(rb"(?:" + b"|".join(ARTICLES) + rb") [ ,&-]*(?=[^ ,&-])")
_NOT_KEPT = re.compile(rb"[^a-z0-9\x80-\xff-]+")
_BREAK = re.compile(rb"[ -]+")
_PAIR = re.compile(f"{ANSWER_OPEN}(.*?){ANSWER_CLOSE}", re.DOTALL)


def _utf8(text: str) -> bytes:
    # A lone surrogate becomes bytes >= 0x80, as any other character that no name holds.
    return text.encode("utf-8", "surrogatepass")


def extract(text: str, *, tags: str = "answer") -> str | None:
    """The content of the answer tags, or None where no answer can be read.

    Tags are compared literally, case included. There must be exactly one `<answer>` and one
    `</answer>` in the whole text, in this order, with more than ASCII white space between them:
    two answers, nested tags, an unclosed tag (a truncated response), and a tag that was quoted
    while thinking all give None. Text before and after the pair is of no interest.

    Args:
      text: the decoded response.
      tags: one of `TAGS`: "answer" for the above; "think" asks for exactly one `<think>` and one
        `</think>` as well, in this order, before `<answer>`; "first" takes the first pair with
        more than white space in it, whatever else is there, as the authors' code does.

    Returns:
      The content, stripped of ASCII white space, or None.
    """
    if tags == "first":
        found = (content.strip(ASCII_SPACE) for content in _PAIR.findall(text))
        return next(filter(None, found), None)
    if text.count(ANSWER_OPEN) != 1 or text.count(ANSWER_CLOSE) != 1:
        return None
    start = text.index(ANSWER_OPEN)
    if tags == "think":
        if text.count(THINK_OPEN) != 1 or text.count(THINK_CLOSE) != 1:
            return None
        if not text.index(THINK_OPEN) < text.index(THINK_CLOSE) < start:
            return None
    # With the closing tag first, the slice is empty.
    content = text[start + len(ANSWER_OPEN) : text.index(ANSWER_CLOSE)].strip(ASCII_SPACE)
    return content or None


def check_tags(tags: str) -> None:
    """Refuses a way of reading answers that does not exist.

    Raises:
      ValueError: it is none of `TAGS`.
    """
    if tags not in TAGS:
        raise ValueError(f"tags is {tags!r}; choose one of {TAGS} (config.verifier)")


def normalize(text: str) -> str:
    """Plain form of an answer, as judges are shown it (arXiv 2603.03197, input of the verifier).

    ASCII letters to lower case; letters, digits, dashes and everything beyond ASCII kept; each run
    of anything else to one space; trimmed.
    """
    return _NOT_KEPT.sub(b" ", _utf8(text).lower()).strip(b" ").decode("utf-8", "surrogatepass")


def too_long(text: str) -> bool:
    """Whether an answer has more than `MAX_TEXT_BYTES`, without ASCII white space around it."""
    return len(_utf8(text.strip(ASCII_SPACE))) > MAX_TEXT_BYTES


def _mapped(text: str) -> bytes:
    """Folds typography and maps bytes; trimmed, with dashes and runs of spaces still in it."""
    # Trees have hundred thousands of names, nearly all of them ASCII.
    if not text.isascii():
        text = _SPACED_DASH.sub(LIST_MARK.decode(), text.translate(_FOLD)).translate(_TO_HYPHEN)
    if "'" in text:
        text = _INNER_APOSTROPHE.sub("", text)
    if not text.isascii():
        text = text.translate(_DROP)
    return _utf8(text).translate(_KEY_TABLE).strip(b" ,&-")


def phrase(text: str) -> bytes:
    """Brings a whole answer into comparable form; b"" if no word is in it.

    In this order: typography folded (`FOLDED`); `LONG_DASHES` beside white space to list marks, and
    others to hyphens; apostrophes between two letters or digits dropped, and `COMBINING` marks;
    bytes mapped by `key_table`; spaces, dashes and list marks trimmed at both ends; dashes to
    spaces; runs of spaces to one. So "Bald-Eagle!" is "bald eagle", "Brewer's" is "brewers", and
    "sea, lion" is not "sea lion".
    """
    return _BREAK.sub(b" ", _mapped(text))


def key(text: str) -> bytes:
    """Form in which names are compared: `phrase` without one leading article.

    An article is dropped if a space (not a dash) follows and then another word: "a-frame" keeps its
    "a", and so does "a" alone.
    """
    mapped = _mapped(text)
    mapped = _ARTICLE.sub(b"", mapped, count=1) if _ARTICLE.match(mapped) else mapped
    return _BREAK.sub(b" ", mapped)


def parenthesis(text: str) -> tuple[bytes, bytes] | None:
    """The phrases of "X (Y)", or None where an answer is not of this form.

    It is if it holds exactly one "(" and, after it, one ")", with a word before them and between
    them, and no word after them.
    """
    if text.count("(") != 1 or text.count(")") != 1:
        return None
    before, _, rest = text.partition("(")
    within, closing, after = rest.partition(")")
    outer, inner = phrase(before), phrase(within)
    return (outer, inner) if closing and outer and inner and not phrase(after) else None


def answer_number(text: str) -> int:
    """Returns equal numbers for responses whose answers are the same words; 0 where none is read.

    Answers that differ have different numbers but for chance: there are 2**24, all of which float32
    holds.
    """
    content = extract(text, tags="first")
    words = key(content) if content is not None else b""
    return max(zlib.crc32(words) & 0xFFFFFF, 1) if words else 0
