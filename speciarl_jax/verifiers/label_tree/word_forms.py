"""Other spellings of a name that count as the name: regular plurals, accents, capitals.

Forms are made when the tables are built, so that answers are only ever compared for equality.
Too many forms do no harm (nobody answers "oxes"); a missing one turns a right answer wrong.
"""

import unicodedata

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


def _plurals_of_word(word: str) -> set[str]:
    forms = set()
    for singular, plural in _IRREGULAR.items():
        if word.endswith(singular):
            forms.add(word.removesuffix(singular) + plural)
    if word.endswith(_TO_VES):
        forms.add(word.removesuffix("e").removesuffix("f") + "ves")
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
    words = name.split(" ")
    heads = {len(words) - 1}
    heads |= {i - 1 for i, w in enumerate(words) if i and w in ("of", "in", "on", "with", "and")}
    found = set()
    for i in heads:
        for form in _plurals_of_word(words[i]) if words[i] else ():
            found.add(" ".join([*words[:i], form, *words[i + 1 :]]))
    return found


def spellings(name: str) -> set[str]:
    """Unicode forms of a name beyond ASCII: composed, decomposed, capitals, and without accents.

    Answers are compared byte by byte and only ASCII letters are lower-cased there, so "Piñata",
    "PIÑATA" and "pinata" have to be in the table. Empty for an ASCII name.
    """
    if name.isascii():
        return set()
    found = set()
    for form in (name, name.lower(), name.upper(), name.capitalize(), name.title()):
        found |= {unicodedata.normalize("NFC", form), unicodedata.normalize("NFD", form)}
    parts = unicodedata.normalize("NFD", name.lower())
    found.add("".join(c for c in parts if not unicodedata.combining(c)))
    return found
