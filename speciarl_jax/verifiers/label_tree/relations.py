"""What the names around each leaf of a label tree mean for it, plurals and other spellings too."""

from collections.abc import Mapping, Sequence

from speciarl_jax.verifiers import abstention, parsing
from speciarl_jax.verifiers.category import Category
from speciarl_jax.verifiers.label_tree import word_forms


def check_name(name: str, max_words: int, where: str) -> None:
    """Refuses a name of more than `max_words` words, or that declines to answer (ValueError)."""
    phrase = parsing.phrase(name)
    words = parsing.key(name).count(b" ") + 1
    if words > max_words:
        raise ValueError(
            f"{where}: the name {name!r} has {words} words, and max_words is {max_words}; "
            "raise max_words or remove the name"
        )
    if abstention.abstains(phrase):
        raise ValueError(f"{where}: the name {name!r} is also an abstention; rename one of them")


def of_leaves(
    entries: Sequence[Sequence[tuple[str, Category, str]]], word_forms_too: bool
) -> list[dict[bytes, tuple[Category, str]]]:
    """Returns each leaf's dict from key to (category, description): names, then their forms.

    Names are spelt as they are. Their forms are squeezed, as answers are compared in this way too;
    but where the squeezed name itself is a name of something else, they are not.
    """
    keys_of = {}
    for name in {name for names in entries for name, _, _ in names}:
        keys_of[name] = tuple(dict.fromkeys((parsing.key(name), parsing.phrase(name))))
    relations, holders = [], {}
    for leaf, names in enumerate(entries):
        relation = {}
        for name, category, match in names:
            for key in keys_of[name]:
                relation.setdefault(key, (category, match))
        for key in relation:
            holders.setdefault(key, []).append(leaf)
        relations.append(relation)
    if not word_forms_too:
        return relations
    written = [dict(relation) for relation in relations]

    def means_the_same(form, key):
        """Whether a form is no name, or means the same as the name to each leaf that has it."""
        return all(_same(written[leaf], form, key) for leaf in holders.get(form, ()))

    forms_of = {}
    for name, (key, *_) in keys_of.items():
        forms = word_forms.forms(name)
        if means_the_same(word_forms.squeezed(key), key):
            forms = set(map(word_forms.squeezed, forms))
        forms_of[name] = [form for form in forms if means_the_same(form, key)]
    for names, relation in zip(entries, relations, strict=True):
        for name, category, match in names:
            found = category, f"form of {match}"
            for form in forms_of[name]:
                relation.setdefault(form, found)
    return relations


def _same(relation: Mapping[bytes, tuple[Category, str]], one: bytes, other: bytes) -> bool:
    return other in relation and relation[one][0] == relation[other][0]
