"""From a response to the label it names: find the answer, bring it into a comparable form.

The rules speak of UTF-8 bytes, not of characters, so that `byte_text` can follow them on a device
to the letter. ASCII bytes are looked at one by one; a byte >= 0x80 is part of a word, whatever it
is. Hence non-breaking or zero-width spaces, look-alike letters and undecodable bytes are never
dropped or mapped: an answer that holds one equals no name, unless the name holds it too.
"""

import re

THINK_OPEN, THINK_CLOSE = "<think>", "</think>"
ANSWER_OPEN, ANSWER_CLOSE = "<answer>", "</answer>"

ASCII_SPACE = " \t\n\r\v\f"

# Between two words these mark an enumeration ("eagle, hawk", "eagle/hawk"). They all become one
# list mark, which stays in the key: "sea, lion" must not collapse into the name "sea lion".
LIST_MARKS = b",;/|&+"
LIST_MARK = b","
ARTICLES = (b"a", b"an", b"the")

# What counts as declining to answer; compared as names are (`key`).
ABSTENTIONS = (
    "none",
    "none of these",
    "none of the above",
    "unknown",
    "unidentified",
    "unidentifiable",
    "uncertain",
    "unclear",
    "unsure",
    "not sure",
    "I am not sure",
    "I'm not sure",
    "I\u2019m not sure",
    "I do not know",
    "I don't know",
    "I don\u2019t know",
    "do not know",
    "don't know",
    "don\u2019t know",
    "idk",
    "no idea",
    "no answer",
    "cannot tell",
    "can't tell",
    "can\u2019t tell",
    "cannot say",
    "cannot determine",
    "cannot be determined",
    "N/A",
)


def key_table() -> bytes:
    """256 bytes that map each byte of an answer for `key`.

    Letters to lower case; digits, dashes and bytes >= 0x80 to themselves; `LIST_MARKS` to the list
    mark; all else to a space.
    """
    table = bytearray(b" " * 256)
    for byte in range(256):
        char = bytes([byte])
        if char.isalnum() or byte >= 0x80 or char == b"-":
            table[byte] = char.lower()[0]
        elif char in LIST_MARKS:
            table[byte] = LIST_MARK[0]
    return bytes(table)


_KEY_TABLE = key_table()
_ARTICLE = re.compile(rb"(?:" + b"|".join(ARTICLES) + rb") [ ,-]*(?=[^ ,-])")
_NOT_KEPT = re.compile(rb"[^a-z0-9\x80-\xff-]+")
_BREAK = re.compile(rb"[ -]+")


def _utf8(text: str) -> bytes:
    # A lone surrogate becomes bytes >= 0x80, as any other character that no name holds.
    return text.encode("utf-8", "surrogatepass")


def extract(text: str, *, require_think: bool = False) -> str | None:
    """The content of the answer tags, or None where no answer can be read.

    Tags are compared literally, case included. There must be exactly one `<answer>` and one
    `</answer>` in the whole text, in this order, with more than ASCII white space between them:
    two answers, nested tags, an unclosed tag (a truncated response), and a tag that was quoted
    while thinking all give None. Text before and after the pair is of no interest.

    Args:
      text: the decoded response.
      require_think: also ask for exactly one `<think>` and one `</think>`, in this order, before
        `<answer>`.

    Returns:
      The content, stripped of ASCII white space, or None.
    """
    if text.count(ANSWER_OPEN) != 1 or text.count(ANSWER_CLOSE) != 1:
        return None
    start = text.index(ANSWER_OPEN)
    if require_think:
        if text.count(THINK_OPEN) != 1 or text.count(THINK_CLOSE) != 1:
            return None
        if not text.index(THINK_OPEN) < text.index(THINK_CLOSE) < start:
            return None
    # With the closing tag first, the slice is empty.
    content = text[start + len(ANSWER_OPEN) : text.index(ANSWER_CLOSE)].strip(ASCII_SPACE)
    return content or None


def normalize(text: str) -> str:
    """Plain form of an answer, as judges are shown it (arXiv 2603.03197, input of the verifier).

    ASCII letters to lower case; letters, digits, dashes and everything beyond ASCII kept; each run
    of anything else to one space; trimmed.
    """
    return _NOT_KEPT.sub(b" ", _utf8(text).lower()).strip(b" ").decode("utf-8", "surrogatepass")


def key(text: str) -> bytes:
    """Form in which the taxonomy verifier compares an answer with names; b"" if no word is in it.

    In this order: bytes mapped by `key_table`; spaces, dashes and list marks trimmed at both ends;
    one leading article dropped if a space (not a dash) follows and then another word; dashes to
    spaces; runs of spaces to one. So "A Bald-Eagle!" and "bald eagle" are equal, "a-frame" keeps
    its "a", and "sea, lion" is not "sea lion".
    """
    mapped = _utf8(text).translate(_KEY_TABLE).strip(b" ,-")
    mapped = _ARTICLE.sub(b"", mapped, count=1) if _ARTICLE.match(mapped) else mapped
    return _BREAK.sub(b" ", mapped)
