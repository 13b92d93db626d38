"""Reading and normalising an answer: the rules, case by case, and their invariants."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from speciarl_jax.verifiers import parsing
from speciarl_jax.verifiers.label_tree import word_forms


@pytest.mark.parametrize(
    ("text", "want"),
    [
        ("<think>a bird</think> <answer>eagle</answer>", "eagle"),
        ("<answer> \n bald eagle\t</answer> and more", "bald eagle"),
        ("<answer>\u00a0</answer>", "\u00a0"),  # white space beyond ASCII is content
        ("<answer>!?</answer>", "!?"),
        ("eagle", None),
        ("", None),
        ("<answer></answer>", None),
        ("<answer> \n </answer>", None),
        ("<answer>eagle", None),  # truncated
        ("<answer>eagle</answer", None),
        ("eagle</answer>", None),
        ("</answer>eagle<answer>", None),
        ("<Answer>eagle</Answer>", None),
        ("< answer>eagle</answer>", None),
        ("<answer>eagle</answer><answer>bird</answer>", None),
        ("<answer><answer>eagle</answer></answer>", None),
        ("<answer>eagle</answer></answer>", None),
        ("<think>so <answer>eagle</answer>?</think><answer>bird</answer>", None),
    ],
)
def test_extract_takes_exactly_one_filled_pair(text, want):
    assert parsing.extract(text) == want


@pytest.mark.parametrize(
    ("text", "want"),
    [
        ("<think></think><answer>eagle</answer>", "eagle"),
        ("<answer>eagle</answer>", None),
        ("<think><answer>eagle</answer></think>", None),
        ("<think>hm<answer>eagle</answer>", None),
        ("</think><think><answer>eagle</answer>", None),
        ("<think></think><think></think><answer>eagle</answer>", None),
        ("<answer>eagle</answer><think></think>", None),
    ],
)
def test_extract_can_require_thinking_first(text, want):
    assert parsing.extract(text, tags="think") == want


@pytest.mark.parametrize(
    ("text", "want"),
    [
        ("<answer>eagle</answer><answer>hawk</answer>", "eagle"),
        ("<answer> </answer>\n<answer></answer><answer> hawk </answer>", "hawk"),
        ("<think>no <answer>eagle</answer>", "eagle"),
        ("<answer>eagle", None),
        ("</answer><answer>eagle<answer></answer>", "eagle<answer>"),
        ("<answer>\t</answer></answer>", None),
    ],
)
def test_extract_can_take_the_first_filled_pair(text, want):
    assert parsing.extract(text, tags="first") == want


@pytest.mark.parametrize(
    ("text", "want"),
    [
        ("  The BALD-Eagle!! ", "the bald-eagle"),
        ("Boeing\t747_400", "boeing 747 400"),
        ("a, b; c/d", "a b c d"),
        ("jalape\u00f1o \u00c9clair", "jalape\u00f1o \u00c9clair"),
        ("\x00\x7f", ""),
    ],
)
def test_normalize_keeps_letters_digits_and_dashes(text, want):
    assert parsing.normalize(text) == want


@pytest.mark.parametrize(
    ("text", "want"),
    [
        ("Bald-Eagle", b"bald eagle"),
        ("  - *a bald   eagle*.", b"a bald eagle"[2:]),
        ("an eagle", b"eagle"),
        ('The "eagle"', b"eagle"),
        ("the the eagle", b"the eagle"),  # one article only
        ("a-frame", b"a frame"),  # no article: a dash follows
        ("an a-frame", b"a frame"),
        ("a", b"a"),  # no article: nothing follows
        ("the.", b"the"),
        ("anteater", b"anteater"),
        ("sea, lion", b"sea, lion"),  # an enumeration stays one
        ("sea/lion", b"sea,lion"),
        ("eagle,", b"eagle"),
        ("the, eagle", b"the, eagle"),
        ("A - 1", b"1"),
        ("?!-, ", b""),
        ("Pi\u00d1ata", b"pinata"),  # accents, composed and decomposed
        ("pin\u0303ata", b"pinata"),
        ("ph\u1edf", b"pho"),
        ("Brewer's", b"brewers"),
        ("Brewer\u2019s blackbird", b"brewers blackbird"),
        ("brewers' blackbird", b"brewers blackbird"),
        ("\u201ceagle\u201d", b"eagle"),
        ("black\u2013footed", b"black footed"),
        ("black\u2010footed\u00a0\u2009bird", b"black footed bird"),
        ("sea \u2013 lion", b"sea , lion"),  # an enumeration
        ("sea\u2014 lion", b"sea, lion"),
        ("fish & chips", b"fish & chips"),
        ("\u0435agle", "\u0435agle".encode()),  # Cyrillic
        ("\uff45agle", "\uff45agle".encode()),  # full width
        ("ea\u034fgle", "ea\u034fgle".encode()),  # an invisible joiner
        ("eagle\u200b", "eagle\u200b".encode()),
    ],
)
def test_key_is_what_names_are_compared_by(text, want):
    assert parsing.key(text) == want


@settings(max_examples=300, deadline=None)
@given(st.text(st.sampled_from("aAnThe -,/.1\u00e9\ud800<>\n"), max_size=30))
def test_key_forgets_case_and_outer_punctuation(text):
    key = parsing.key(text)
    assert key == parsing.key(text.upper().replace("\u00c9", "\u00e9"))
    assert key == parsing.key(f" .- {text} -,. ")
    assert b"  " not in key and b"-" not in key and key == key.strip(b" ,")


@settings(max_examples=300, deadline=None)
@given(st.text(max_size=30))
def test_normalize_of_any_text_is_idempotent(text):
    once = parsing.normalize(text)
    assert parsing.normalize(once) == once


def test_a_phrase_keeps_its_article():
    assert parsing.phrase("The Bald-Eagle!") == b"the bald eagle"
    assert parsing.phrase("A-320") == b"a 320" and parsing.phrase("A 320") == b"a 320"


@pytest.mark.parametrize(
    ("text", "want"),
    [
        ("eagle (bird)", (b"eagle", b"bird")),
        ("BMW M3 (2012).", (b"bmw m3", b"2012")),
        ("(eagle)", None),
        ("eagle ()", None),
        ("eagle (bird) hawk", None),
        ("eagle (bird (hawk))", None),
        ("eagle (bird) (hawk)", None),
        ("eagle) bird (", None),
        ("eagle (bird", None),
    ],
)
def test_parenthesis(text, want):
    assert parsing.parenthesis(text) == want


@pytest.mark.parametrize(
    ("plural", "singular"),
    [
        ("pancakes", "pancake"),
        ("oysters", "oyster"),
        ("french fries", "french fry"),
        ("cookies", "cookie"),
        ("dishes", "dish"),
        ("tomatoes", "tomato"),
        ("wolves", "wolf"),
        ("knives", "knife"),
        ("field mice", "field mouse"),
        ("birds of prey", "bird of prey"),
    ],
)
def test_singulars(plural, singular):
    assert singular in word_forms.singulars(plural)


@pytest.mark.parametrize("word", ["hummus", "grass", "bass", "iris", "swiss", "species", "eagle"])
def test_words_that_are_no_plurals_have_no_singular(word):
    assert word_forms.singulars(word) == set()


def test_forms_join_number_and_ampersand():
    forms = word_forms.forms("Fish and Chips")
    assert {b"fish and chips", b"fish & chips", b"fish and chip"} <= forms
    assert word_forms.forms("BMW M3 2012") == {b"bmw m3 2012"}


@pytest.mark.parametrize(
    ("name", "plural"),
    [
        ("eagle", "eagles"),
        ("fox", "foxes"),
        ("peach", "peaches"),
        ("butterfly", "butterflies"),
        ("monkey", "monkeys"),
        ("wolf", "wolves"),
        ("giraffe", "giraffes"),
        ("potato", "potatoes"),
        ("piano", "pianos"),
        ("snowman", "snowmen"),
        ("field mouse", "field mice"),
        ("bird of prey", "birds of prey"),
    ],
)
def test_plurals(name, plural):
    assert plural in word_forms.plurals(name)


def test_spellings_cover_accents_and_capitals():
    forms = word_forms.spellings("pi\u00f1ata")
    assert {"pinata", "PI\u00d1ATA", "pin\u0303ata"} <= forms
    assert word_forms.spellings("eagle") == set()
