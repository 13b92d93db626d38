"""What a base policy is taught to say: shares of its habits, and answers that verify as meant."""

from collections import Counter

import numpy as np
import pytest

from examples.pretrain import answers
from speciarl_jax.data import emoji
from speciarl_jax.verifiers import parsing
from speciarl_jax.verifiers.category import Category
from speciarl_jax.verifiers.taxonomy import Taxonomy

TAXONOMY = Taxonomy.from_file(emoji.TAXONOMY_PATH)
CONCEPTS = answers.concepts(TAXONOMY.data, set(TAXONOMY.leaf_ids))
LEVELS = (Category.ABSTAIN, Category.GENERIC, Category.LESS_SPECIFIC, Category.SPECIFIC)


def habits(**changes):
    shares = (0.0, 0.4, 0.35, 0.25)
    options = dict(level_shares=shares, usual=0.6, abstain={"hard": 0.4}, synonym=0.1)
    return answers.Habits(**{**options, **changes})


def only(level, **changes):
    """Habits of one who always answers at a level."""
    shares = tuple(float(i == level) for i in range(4))
    return habits(level_shares=shares, usual=1.0, **changes)


def concept(**changes):
    options = dict(
        label_id="x",
        name="eagle",
        synonyms=("erne", "aquila"),
        ancestors=("raptor", "bird"),
        generic="animal",
    )
    return answers.Concept(**{**options, **changes})


def content(text):
    return parsing.extract(text, tags="think")


def draw(concept, count, difficulty="clean", seed=0, **changes):
    rng = np.random.default_rng(seed)
    chosen = habits(**changes)
    return [content(answers.response(concept, difficulty, chosen, rng)) for _ in range(count)]


@pytest.mark.parametrize("level", range(4))
def test_responses_verify_at_the_level_that_was_meant(level):
    rng = np.random.default_rng(0)
    for leaf in CONCEPTS:
        skipped = level == 2 and not leaf.ancestors
        want = Category.GENERIC if skipped else LEVELS[level]
        for synonym in (0.0, 1.0):
            text = answers.response(leaf, "clean", only(level, synonym=synonym), rng)
            assert content(text) is not None
            got = TAXONOMY.response_category(text, leaf.label_id, tags="think")
            assert got is want, (leaf.label_id, text)


def test_every_text_for_the_tokenizer_verifies_as_something():
    known = set(answers.texts(CONCEPTS))
    for leaf in CONCEPTS:
        for text in answers.texts([leaf]):
            assert text in known
            got = TAXONOMY.response_category(text, leaf.label_id, tags="think")
            assert got in LEVELS, (leaf.label_id, text)


def test_every_response_is_among_the_texts_for_the_tokenizer():
    rng = np.random.default_rng(0)
    for leaf in CONCEPTS[::10]:
        known = set(answers.texts([leaf]))
        said = {answers.response(leaf, "hard", habits(synonym=0.5), rng) for _ in range(100)}
        assert said <= known and len(said) > 2


def test_declining_verifies_as_abstention_and_is_as_frequent_as_told():
    text = answers.response(
        concept(), "hard", habits(abstain={"hard": 1.0}), np.random.default_rng()
    )
    assert TAXONOMY.response_category(text, "eagle", tags="think") is Category.ABSTAIN
    for difficulty, share in (("hard", 0.4), ("clean", 0.0)):
        said = draw(concept(), 4000, difficulty)
        assert abs(said.count(answers.ABSTENTION) / 4000 - share) < 0.03


@pytest.mark.parametrize("level", range(4))
def test_an_answer_has_the_usual_level_as_often_as_told(level):
    shares = tuple(float(i == level) for i in range(4))
    said = Counter(draw(concept(), 4000, level_shares=shares, synonym=0.0))
    others = 0.2 if level else 0.4 / 3  # abstaining is a habit or none at all
    for i, label in enumerate((answers.ABSTENTION, "animal", "raptor", "eagle")):
        share = 0.6 if i == level else others if i else 0.0
        assert abs(said[label] / 4000 - share) < 0.03


def test_synonyms_stand_for_the_name_as_often_as_told():
    said = Counter(draw(concept(), 6000, level_shares=(0, 0, 0, 1), usual=1.0, synonym=0.3))
    assert abs(said["eagle"] / 6000 - 0.7) < 0.03
    assert abs(said["erne"] / 6000 - 0.15) < 0.03 and abs(said["aquila"] / 6000 - 0.15) < 0.03
    alone = concept(synonyms=())
    assert set(draw(alone, 50, level_shares=(0, 0, 0, 1), usual=1.0, synonym=1.0)) == {"eagle"}


def test_usual_levels_are_fixed_and_shared_out_as_told():
    many = [concept(label_id=f"leaf {i}") for i in range(4000)]
    levels = [answers.usual_level(c, habits()) for c in many]
    assert levels == [answers.usual_level(c, habits(usual=0.9)) for c in many]
    for level, share in zip(answers.LEVELS, habits().level_shares, strict=True):
        assert abs(levels.count(level) / len(many) - share) < 0.03


def test_a_concept_without_ancestors_never_answers_less_specifically():
    bare = concept(ancestors=())
    assert answers.usual_level(bare, only(2)) == "generic"
    assert set(draw(bare, 200, level_shares=(0, 0, 1, 0), synonym=0.0)) == {"animal", "eagle"}


def test_the_same_generator_gives_the_same_responses():
    assert draw(concept(), 40, "hard") == draw(concept(), 40, "hard")
    assert draw(concept(), 40, "hard") != draw(concept(), 40, "hard", seed=1)


@pytest.mark.parametrize("shares", [(0.5, 0.5), (0.5, 0.25, 0.25), (0.2, 0.2, 0.2, 0.2)])
def test_shares_that_are_no_shares_are_refused(shares):
    with pytest.raises(ValueError, match="level_shares.*4 shares that sum to 1"):
        habits(level_shares=shares)


def test_concepts_have_the_names_of_the_tree_in_its_order():
    emojis = {concept.label_id: concept for concept in emoji.concepts("all")}
    assert [one.label_id for one in CONCEPTS] == list(emojis)
    for one in CONCEPTS:
        other = emojis[one.label_id]
        assert (one.name, one.synonyms, one.generic) == (other.name, other.synonyms, other.generic)
        assert one.ancestors == other.ancestors
    some = {CONCEPTS[5].label_id, CONCEPTS[2].label_id}
    assert answers.concepts(TAXONOMY.data, some) == [CONCEPTS[2], CONCEPTS[5]]
    leaf = {"name": "jet", "synonyms": ["[Boeing |]747"], "generic": "g", "ancestors": [["a", "b"]]}
    (found,) = answers.concepts({"leaves": {"x": leaf}}, {"x"})
    assert (found.synonyms, found.ancestors) == (("Boeing 747", "747"), ("a",))


def test_a_prompt_shifts_levels_as_often_as_told():
    changes = {"leanings": {"specific": (0, 0, 0, 1)}, "synonym": 0.0, "level_shares": (0, 1, 0, 0)}
    chosen = habits(**changes, usual=1.0, obedience=0.7)
    rng = np.random.default_rng(0)
    said = {
        prompt: Counter(
            content(answers.response(concept(), "", chosen, rng, prompt)) for _ in range(4000)
        )
        for prompt in ("base", "specific")
    }
    assert said["base"] == {"animal": 4000}
    assert abs(said["specific"]["eagle"] / 4000 - 0.7) < 0.03
    assert set(said["specific"]) == {"eagle", "animal"}
