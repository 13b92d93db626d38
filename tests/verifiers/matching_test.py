"""Forgiving the form of an answer and never its content, on the host and on the device."""

import functools
import random

import jax
import numpy as np
import pytest

from speciarl_jax.data import emoji, tfds_images
from speciarl_jax.verifiers import matching, parsing
from speciarl_jax.verifiers.category import Category
from speciarl_jax.verifiers.label_tree import schema
from speciarl_jax.verifiers.taxonomy import Taxonomy, TaxonomyVerifier

W, A, G, L, S, M = (Category(i) for i in range(6))
U = Category.UNPARSED
TREE = {
    "version": 1,
    "leaves": {
        "sparrow": {
            "name": "House Sparrow",
            "synonyms": ["Passer domesticus"],
            "ancestors": [["sparrow"]],
            "broader": [["songbird"]],
            "generic": "bird",
        },
        "brewer": {"name": "Brewer's Blackbird", "generic": "bird", "ancestors": [["blackbird"]]},
        "crow": {"name": "Crow", "generic": "bird", "broader": [["black bird"]]},
        "mau": {"name": "Egyptian Mau", "generic": "cat"},
        "beagle": {"name": "Beagle", "generic": "dog", "ancestors": [["hound"]]},
        "hotdog": {"name": "hot dog", "generic": "food"},
        "fries": {"name": "French fries", "generic": "food"},
        "fish": {"name": "fish and chips", "generic": "food"},
        "corn": {"name": "corn", "generic": "food"},
        "acorn": {"name": "acorn", "generic": "food"},
        "a320": {"name": "A320", "synonyms": ["[Airbus |]A320"], "generic": "plane"},
        "an12": {"name": "An-12", "generic": "plane"},
        "c130": {"name": "C-130", "ancestors": [["Lockheed"]], "generic": "plane"},
        "forget": {"name": "forget me not", "generic": "flower"},
    },
    "groups": {
        "bird": ["bird"],
        "cat": ["cat"],
        "dog": ["dog"],
        "food": ["food"],
        "plane": ["airplane", "passenger plane"],
        "flower": ["flower"],
    },
    "modifiers": [
        "male",
        "female",
        "juvenile",
        "black and white",
        "gray",
        "puppy",
        "hot",
        "with chicks",
    ],
    "frames": ["plate of", "flock of", "on a twig", "in a green field"],
}
CASES = [
    ("male House Sparrow", "sparrow", M),
    ("a juvenile male house sparrow", "sparrow", M),
    ("house sparrow female", "sparrow", M),
    ("House Sparrow (male)", "sparrow", M),
    ("House Sparrow (juvenile, male)", "sparrow", W),  # a list
    ("House Sparrow (juvenile male)", "sparrow", M),
    ("male sparrow", "sparrow", L),
    ("male", "sparrow", W),
    ("house sparrow bird", "sparrow", S),
    ("house sparrows bird", "sparrow", S),
    ("House Sparrow song bird", "sparrow", S),
    ("house sparrow dog", "sparrow", W),
    ("house sparrow sparrow", "sparrow", S),
    ("male house sparrow sparrow", "sparrow", M),
    ("songbird sparrow", "sparrow", W),  # only behind a name that is right
    ("crow sparrow", "sparrow", W),
    ("a house sparrow on a twig", "sparrow", S),
    ("house sparrows in a green field", "sparrow", S),
    ("sparrow on a twig", "sparrow", L),
    ("on a twig house sparrow", "sparrow", W),
    ("on a twig", "sparrow", W),
    ("crow on a twig", "sparrow", W),
    ("house sparrow with chicks", "sparrow", M),
    ("with chicks house sparrow", "sparrow", W),
    ("house sparrow with crow", "sparrow", W),
    ("sparrow sparrow", "sparrow", W),
    ("house sparrow plate of", "sparrow", S),
    ("House Sparrow (flock of)", "sparrow", S),
    ("crow (flock of)", "sparrow", W),
    ("House Sparrow (Passer domesticus)", "sparrow", S),
    ("sparrow (Passer domesticus)", "sparrow", S),
    ("bird (sparrow)", "sparrow", L),
    ("House Sparrow (crow)", "sparrow", W),
    ("crow (House Sparrow)", "sparrow", W),
    ("House Sparrow (unknown)", "sparrow", W),
    ("House Sparrow (what else)", "sparrow", W),
    ("(House Sparrow)", "sparrow", S),
    ("(male) House Sparrow", "sparrow", M),
    ("House Sparrow or crow", "sparrow", W),
    ("House Sparrow and crow", "sparrow", W),
    ("House Sparrow crow", "sparrow", W),
    ("House Sparrow / crow", "sparrow", W),
    ("House \u2013 Sparrow", "sparrow", W),
    ("a photo of a house sparrow", "sparrow", S),
    ("a close-up photo of the male house sparrow", "sparrow", M),
    ("this is a house sparrow", "sparrow", S),
    ("it is a house sparrow", "sparrow", W),
    ("a flock of house sparrows", "sparrow", S),
    ("a photo of a flock of birds", "sparrow", G),
    ("a photo of a dog", "sparrow", W),
    ("unknown sparrow", "sparrow", A),
    ("a photo of an unknown bird", "sparrow", W),
    ("Brewers blackbird", "brewer", S),
    ("Brewer s Blackbird", "brewer", S),
    ("Brewer\u2019s black-birds", "brewer", S),
    ("black bird", "brewer", W),  # written in the tree for something else
    ("blackbird", "crow", W),
    ("blackbirds", "crow", W),
    ("black birds", "crow", G),
    ("Egyptian Mau cat", "mau", S),
    ("Egyptian Mau dog", "mau", W),
    ("Egyptian Mau puppy", "mau", M),
    ("gray cat", "mau", G),
    ("beagle puppies", "beagle", M),
    ("black & white beagle dog", "beagle", M),
    ("hotdog", "hotdog", S),
    ("hot-dogs", "hotdog", S),
    ("hot beagle", "beagle", M),
    ("a hotdog", "beagle", W),
    ("french fry", "fries", S),
    ("plate of French fries", "fries", S),
    ("Fish & Chips", "fish", S),
    ("fish, chips", "fish", W),
    ("a corn", "corn", S),
    ("a corn", "acorn", W),
    ("A-320", "a320", S),
    ("A 320", "a320", S),
    ("the A320 passenger plane", "a320", S),
    ("320", "a320", W),
    ("An-12", "an12", S),
    ("AN12", "an12", S),
    ("12", "an12", W),
    ("C130", "c130", S),
    ("C 130", "c130", S),
    ("Lockheed (C-130)", "c130", S),
    ("C-1300", "c130", W),
    ("forget-me-not", "forget", S),
    ("Forget me nots", "forget", S),
]
BYTES = [bytes([i]) for i in range(256)]
verify = jax.jit(lambda verifier, *batch: verifier.verify_in_detail(*batch))


def on_device(verifier, texts, leaves, *, width, rows):
    """Categories and whether the tree decided; a token a byte."""
    category, matched = [], []
    for at in range(0, len(texts), rows):
        part = list(texts[at : at + rows])
        tokens, leaf = np.zeros((rows, 1, width), np.int32), np.zeros(rows, np.int32)
        mask = np.zeros((rows, 1, width), bool)
        leaf[: len(part)] = leaves[at : at + rows]
        for i, text in enumerate(part):
            raw = b"<answer>" + text + b"</answer>"
            tokens[i, 0, : len(raw)], mask[i, 0, : len(raw)] = list(raw), True
        found = verify(verifier, tokens, mask, leaf)
        category += np.asarray(found.category_BN)[: len(part), 0].tolist()
        matched += np.asarray(found.matched_BN)[: len(part), 0].tolist()
    return category, matched


@functools.cache
def tree():
    return Taxonomy(TREE)


@pytest.mark.parametrize(("text", "leaf_id", "want"), CASES)
def test_form_is_forgiven_and_content_is_not(text, leaf_id, want):
    assert tree().category(text, leaf_id) is want


def test_the_same_on_the_device():
    taxonomy = tree()
    leaves = [taxonomy.leaf_index(leaf) for _, leaf, _ in CASES]
    texts = [text.encode() for text, _, _ in CASES]
    got, matched = on_device(
        TaxonomyVerifier(taxonomy, BYTES), texts, leaves, width=96, rows=len(texts)
    )
    wrong = [(case, g) for case, g in zip(CASES, got, strict=True) if case[2] != g]
    assert not wrong
    assert matched == [taxonomy.explain(text, leaf).known for text, leaf, _ in CASES]


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("female Passer domesticus", "modifier 'female' before synonym"),
        ("Passer domesticus", "synonym 'Passer domesticus' of 'House Sparrow'"),
        ("house sparrow bird", "generic name 'bird' after name 'House Sparrow'"),
        ("house sparrow sparrow", "broader name 'sparrow' after name 'House Sparrow'"),
        ("house sparrow on a twig", "frame 'on a twig' after name 'House Sparrow'"),
        ("photo of a sparrow", "frame 'photo of a' before ancestor 1 'sparrow'"),
        ("bird (sparrow)", "group 'bird' and ancestor 1 'sparrow'"),
        ("crow", "name of another label"),
        ("ostrich", ""),
    ],
)
def test_explanations_are_fit_for_people(text, match):
    found = tree().explain(text, "sparrow").match
    assert found.startswith(match) and bool(found) == bool(match)


def test_the_whole_answer_comes_before_its_parts():
    order = [
        matching.rank(matching.FRAME, 0, 0, 0),
        matching.rank(matching.FRAME, 1, 0, 0),
        matching.rank(matching.FRAME, 0, 0, 1),
        matching.rank(matching.FRAME, 0, 1, 0),
        matching.rank(matching.MODIFIER, 1, 0, 0),
        matching.rank(matching.MODIFIER, 2, 0, 0),
    ]
    assert order == sorted(set(order))


def test_modifiers_are_plain_words():
    with pytest.raises(ValueError, match="'red, green' has a list mark"):
        Taxonomy(TREE | {"modifiers": ["red, green"]})


# --- mutated answers about every tree that ships --------------------------------------------------

FRAMES = ["a {}", "the {}", "a photo of a {}", "close-up image of the {}", "this is a {}", "({})"]
FRAMES += ["it is a {}", "{}.", " {} ", "\u201c{}\u201d", "{},", "the image shows a {}", "{}s"]
MARKS = ["\u2019", "\u2013", " \u2014 ", "\u00a0", "\u200b", "\u0301", "\u00e9", "\u0435", "\uff45"]
MARKS += [
    "-",
    "'",
    "&",
    ", ",
    "/",
    " and ",
    " or ",
    "(",
    ")",
    "  ",
    "\x01",
    "\n",
    "\u2212",
    "\ud7a3",
]


def mutated(rng, name, names, modifiers, frames):
    for _ in range(rng.choice([0, 1, 1, 2, 2, 3])):
        other, word = rng.choice(names), rng.choice(modifiers)
        at = rng.randrange(len(name) + 1)
        name = rng.choice(
            [
                rng.choice(FRAMES).format(name),
                f"{word} {name}",
                f"{name} {word}",
                f"{rng.choice(frames)} {name}",
                f"{name} {rng.choice(frames)}",
                f"{name} ({other})",
                f"{name} ({word} {word})",
                f"{name} {other}",
                name[:at] + rng.choice(MARKS) + name[at:],
                name[:at] + name[at + 1 :],
                name.replace(" ", rng.choice(["", "-"])),
                rng.choice([name.upper(), name.title()]),
                rng.choice(["unknown ", "I cannot identify the ", "not sure, "]) + name,
                name + rng.choice([", ", " or ", " and ", "/"]) + other,
            ]
        )
    raw = name.encode()
    return raw[: rng.randrange(len(raw) + 1)] if rng.random() < 0.05 else raw


PATHS = [*sorted(tfds_images.TREES.glob("*.json")), emoji.TAXONOMY_PATH]
# Of the others, programs are compiled that differ from these in the sizes of tables alone.
QUICK = ("caltech_birds2011", emoji.TAXONOMY_PATH.stem)


@functools.cache
def read(path):
    return Taxonomy.from_file(path)


@pytest.mark.parametrize(
    "path",
    [p if p.stem in QUICK else pytest.param(p, marks=pytest.mark.slow) for p in PATHS],
    ids=lambda path: path.stem,
)
def test_device_and_host_agree_on_mutated_answers(path, count=10_000):
    rng, taxonomy = random.Random(path.stem), read(path)
    groups, leaves = taxonomy.data["groups"], taxonomy.data["leaves"].values()
    own = [[name for name, _, _ in schema.relations(leaf, groups)] for leaf in leaves]
    names = sorted({name for some in own for name in some})
    beside = [taxonomy.data.get(key) or ["old"] for key in ("modifiers", "frames")]
    index = [rng.randrange(len(own)) for _ in range(count)]
    texts = [mutated(rng, rng.choice(own[i]), names, *beside) for i in index]
    width = 224
    texts = [text[: width - 17] for text in texts]
    verifier = TaxonomyVerifier(taxonomy, BYTES)
    got, matched = on_device(verifier, texts, index, width=width, rows=1000)
    seen = set()
    for text, i, category, decided in zip(texts, index, got, matched, strict=True):
        content = parsing.extract(f"<answer>{text.decode(errors='replace')}</answer>")
        want, known = U, True
        if content is not None:
            explained = taxonomy.explain(content, taxonomy.leaf_ids[i])
            want, known = explained.category, explained.known
        assert (category, decided) == (want, known), (text, taxonomy.leaf_ids[i])
        seen.add(want)
    assert seen == set(Category)  # the comparison saw every outcome


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_no_list_and_no_second_name_is_right(path):
    rng, taxonomy = random.Random(path.stem), read(path)
    leaves = list(taxonomy.data["leaves"].values())
    for _ in range(300):
        i, k = rng.sample(range(len(leaves)), 2)
        one, other = (rng.choice(schema.expand(leaves[n]["name"])) for n in (i, k))
        if taxonomy.category(other, taxonomy.leaf_ids[i]) != W:
            continue
        for text in (
            *(f"{one} or {other}", f"{one} and {other}", f"{one}, {other}", f"{one}/{other}"),
            *(f"{one} {other}", f"{other} {one}", f"{one} ({other})", f"{other} ({one})"),
            *(f"{one} \u2014 {other}", f"a photo of a {one} or a {other}", f"{one} & {other}"),
        ):
            if parsing.key(text) in taxonomy.relations[i]:
                continue  # written in the tree: "gnocchi dumplings"
            found = taxonomy.explain(text, taxonomy.leaf_ids[i])
            assert found.category == W, (text, found)
