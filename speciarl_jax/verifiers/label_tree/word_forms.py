"""Other spellings of a name that count as the name: number, joined words, "&", capitals.

Forms are made when the tables are built, so that answers are only ever compared for equality.
Too many forms do no harm (nobody answers "oxes"); a missing one turns a right answer wrong.
"""

import re
import unicodedata
from collections.abc import Callable

from speciarl_jax.verifiers import parsing

_IRREGULAR = {
    "man": "men",
    "person": "people",
    "child": "children",
    "mouse": "mice",
    "louse": "lice",
    "goose": "geese",
    "foot": "feet",
    "tooth": "teeth",
    "ox": "oxen",
    "cactus": "cacti",
    "fungus": "fungi",
    "die": "dice",
}
# Words in -f and -fe that take -ves; others ("giraffe", "roof") only take -s.
_TO_VES = (
    *("calf", "elf", "half", "knife", "leaf", "life", "loaf", "scarf"),
    *("sheaf", "shelf", "thief", "wife", "wolf", "hoof", "dwarf"),
)
# Words in -s that are no plurals, beyond those in -ss, -us and -is.
_SINGULAR_IN_S = (
    *("swiss", "molasses", "species", "series", "mercedes", "atlas", "canvas", "pancreas"),
    *("christmas", "rhinoceros", "albatros", "cosmos", "coreopsis", "lens", "gas", "texas"),
    *("antirrhinum", "pampas", "asparagas", "calas", "lotos", "kudos", "chaos"),
)
_IRREGULAR_PLURALS = tuple(_IRREGULAR.values())
_IN_VES = tuple(f.removesuffix("e").removesuffix("f") + "ves" for f in _TO_VES)
_YEAR = re.compile("(19|20)[0-9][0-9]")


def _is_plural(word: str) -> bool:
    """Whether a word looks like a regular plural."""
    if len(word) < 4 or not word.endswith("s") or word.endswith(("ss", "us", "is")):
        return False
    return not word.endswith(_SINGULAR_IN_S)


def _singulars_of_word(word: str) -> set[str]:
    forms = set()
    if word.endswith(_IRREGULAR_PLURALS):
        for singular, plural in _IRREGULAR.items():
            if word.endswith(plural):
                forms.add(word.removesuffix(plural) + singular)
    if word.endswith(_IN_VES):
        forms |= {word[:-3] + "f", word[:-3] + "fe"}
    if not _is_plural(word):
        return forms
    forms.add(word[:-1])
    if word.endswith("ies"):
        forms.add(word[:-3] + "y")
    elif word.endswith(("ses", "xes", "zes", "ches", "shes", "oes")):
        forms.add(word[:-2])
    return forms


def _plurals_of_word(word: str) -> set[str]:
    forms = set()
    if _YEAR.fullmatch(word):
        return forms
    for singular, plural in _IRREGULAR.items():
        if word.endswith(singular):
            forms.add(word.removesuffix(singular) + plural)
    if word.endswith(_TO_VES):
        forms.add(word.removesuffix("e").removesuffix("f") + "ves")
    # "Audi TTS" is no plural of "Audi TT".
    if _is_plural(word) or (len(word) < 3 and word.isalpha()):
        return forms
    if word.endswith("y") and word[-2:-1] not in ("a", "e", "i", "o", "u"):
        forms.add(word[:-1] + "ies")
    elif word.endswith(("s", "x", "z", "ch", "sh", "o")):
        forms.add(word + "es")
    if not word.endswith(("s", "x", "z", "ch", "sh")):
        forms.add(word + "s")
    return forms


def plurals(name: str) -> set[str]:
    """Simple English plurals of a lower-case name of one or more words.

    The last word is inflected; in "bird of prey" also the word before "of" (or "in", "and", ...).
    """
    return _inflected(name, _plurals_of_word)


def singulars(name: str) -> set[str]:
    """Singulars of a lower-case name in the plural, word by word as `plurals`; empty for others."""
    return _inflected(name, _singulars_of_word)


def _inflected(name: str, forms_of: Callable[[str], set[str]]) -> set[str]:
    words = name.split(" ")
    heads = {len(words) - 1}
    heads |= {i - 1 for i, w in enumerate(words) if i and w in ("of", "in", "on", "with", "and")}
    found = set()
    for i in heads:
        for form in forms_of(words[i]) if words[i] else ():
            found.add(" ".join([*words[:i], form, *words[i + 1 :]]))
    return found


def squeezed(key: bytes) -> bytes:
    """A key without its spaces, as which words that are written together or apart are compared."""
    return key.replace(b" ", b"")


def forms(name: str) -> frozenset[bytes]:
    """Keys that count as a name, the name's own included: number, spelling, "and" for "&"."""
    keys = {parsing.phrase(name), *map(parsing.key, (name, *spellings(name)))}
    for key in tuple(keys):
        text = key.decode("utf-8", "surrogatepass")
        texts = {text} | plurals(text) | singulars(text)
        if " and " in text or " & " in text:
            texts |= {t.replace(" and ", " & ") for t in texts}
            texts |= {t.replace(" & ", " and ") for t in texts}
        keys |= {t.encode("utf-8", "surrogatepass") for t in texts}
    return frozenset(keys - {b""})


def spellings(name: str) -> set[str]:
    """Unicode forms of a name beyond ASCII: composed, decomposed, capitals, and without accents.

    Answers are compared byte by byte, and only ASCII letters and accented Latin ones are
    lower-cased there (`parsing.FOLDED`), so the capitals of other scripts have to be in the table.
    Empty for an ASCII name.
    """
    if name.isascii():
        return set()
    found = set()
    for form in (name, name.lower(), name.upper(), name.capitalize(), name.title()):
        found |= {unicodedata.normalize("NFC", form), unicodedata.normalize("NFD", form)}
    parts = unicodedata.normalize("NFD", name.lower())
    found.add("".join(c for c in parts if not unicodedata.combining(c)))
    return found
