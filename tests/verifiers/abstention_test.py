"""Declining to answer: what the grammar accepts, what it must not, and its automaton."""

import re

import numpy as np
import pytest

from speciarl_jax.verifiers import abstention, dfa, parsing

DECLINES = """
none; None of these; unknown; Unidentified.; unsure; I cannot tell; I can't determine the species
unable to identify the bird; cannot be determined from the image; not sure what this is; n/a
I don't know; I don\u2019t know; no idea; hard to say; impossible to tell; unknown bird; idk
unidentified species; unknown breed of dog; not enough information; the image is too blurry
indeterminate; unknown sparrow; none of the above; the species is unknown; bird species unknown
I'm unable to identify this; It is difficult to determine the breed from this image; not sure
The bird cannot be identified; I don't have enough information; no clue; not visible; unclear
""".replace("\n", ";").split(";")
DECLINES += ["Sorry, I can't tell", "I'm sorry, but I cannot identify the species"]
DECLINES += ["As an AI model, I cannot identify this", "Without more context, I cannot say"]
DECLINES += (
    """
I'd need a clearer image to identify it; more information is needed; I'd rather not guess
There is no bird in this image; no discernible car; The image does not show a bird; make unknown
identification is not possible; unknown make and model; make and model unknown; no clear answer
a bird that I cannot identify; Based on the image, I cannot determine it; exact year unknown
""".strip()
    .replace("\n", ";")
    .split(";")
)
DECLINES += ["I cannot tell, the image is too blurry", "Unfortunately, not identifiable"]
ANSWERS = """
forget me not; eagle; none of the above bird; not a bird; I think eagle; unknown, eagle; not eagle
not sure but eagle; I cannot tell but eagle; it is an eagle; nonesuch; I know; car; small dog
no eagle; I need an eagle; the image shows an eagle; identification; bird and dog; no bird but eagle
hard rock; nil eagle; image of eagle; dog is small dog eagle; clear; sure; tell; no bird
""".replace("\n", ";").split(";")


@pytest.mark.parametrize("text", [t.strip() for t in DECLINES if t.strip()])
def test_declining(text):
    assert abstention.text_abstains(text)


@pytest.mark.parametrize("text", [t.strip() for t in ANSWERS if t.strip()])
def test_naming_is_not_declining(text):
    assert not abstention.text_abstains(text)


def test_a_long_text_does_not_decline():
    text = "I do not know" + " what" * 20
    assert len(text) > abstention.MAX_BYTES and not abstention.text_abstains(text)
    assert abstention.text_abstains(text[: abstention.MAX_BYTES])


@pytest.mark.parametrize(
    "expressions",
    [("a(b|cd)*e?",), ("[a-c]+x|[^a ,]*",), ("(ab |c )?", "(ab |c )?(d |ab )+")],
)
def test_automata_accept_what_re_accepts(expressions):
    rng = np.random.default_rng(0)
    automaton = dfa.compile(*expressions)
    matchers = [re.compile(e.encode()) for e in expressions]
    accepted = 0
    for _ in range(3000):
        text = bytes(rng.choice(list(b"abcdex ,"), rng.integers(0, 9)).astype(np.uint8))
        for end, label in enumerate(automaton.labels(text)):
            found = [i for i, m in enumerate(matchers, 1) if m.fullmatch(text[:end])]
            assert label == (found or [0])[0], (text[:end], expressions)
            accepted += label > 0
    assert accepted > 100


@pytest.mark.parametrize("expression", ["a.b", "(a", "a)", "a\\b", "^a"])
def test_syntax_beyond_the_automaton_is_refused(expression):
    with pytest.raises(ValueError, match="expression"):
        dfa.compile(expression)


def test_the_grammar_and_its_automaton_agree():
    rng = np.random.default_rng(1)
    words = " ".join(DECLINES + ANSWERS).split() + [",", "sorry", "is", "the"]
    automaton, accepted = abstention.automaton(), 0
    for _ in range(3000):
        text = str(rng.choice(DECLINES + ANSWERS)) if rng.random() < 0.5 else ""
        parts = [*text.split(), *rng.choice(words, rng.integers(0, 4))]
        if parts and rng.random() < 0.5:
            parts.insert(rng.integers(len(parts)), str(rng.choice(words)))
        phrase = parsing.phrase(" ".join(parts))[: abstention.MAX_BYTES]
        assert (automaton.labels(phrase)[-1] > 0) == abstention.abstains(phrase), phrase
        accepted += abstention.abstains(phrase)
    assert accepted > 300
