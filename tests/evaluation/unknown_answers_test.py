"""Answers that no label of the tree has as a name."""

from speciarl_jax.evaluation import unknown_answers
from speciarl_jax.verifiers.taxonomy import Taxonomy

TREE = {
    "version": 1,
    "groups": {"animal": ["animal"]},
    "leaves": {
        "eagle": {"name": "eagle", "generic": "animal", "ancestors": [["bird"]]},
        "mouse": {"name": "mouse", "generic": "animal", "hyponyms": ["house mouse"]},
    },
}


def said(*answers):
    return [f"<think></think><answer>{answer}</answer>" for answer in answers]


def test_names_of_any_label_declining_and_what_cannot_be_read_are_not_unknown():
    known = said("eagle", "Bird!", "house mouse", "an animal", "unknown")
    found = unknown_answers.find([*known, "no tags", "<answer> </answer>"], Taxonomy(TREE))
    assert found == {"share": 0, "most_frequent": []}
    assert unknown_answers.describe({"unknown_answers": found}) == ""
    assert unknown_answers.describe({}) == ""


def test_the_ten_most_frequent_are_counted_whatever_their_spelling():
    answers = ["Unicorn", "unicorn!", "a unicorn", "gryphon", "eagle"] + [
        f"z{i}" for i in range(20)
    ]
    found = unknown_answers.find(said(*answers), Taxonomy(TREE))
    assert found["share"] == 24 / 25
    assert found["most_frequent"][:4] == [
        ["unicorn", 2],
        ["a unicorn", 1],
        ["gryphon", 1],
        ["z0", 1],
    ]
    assert len(found["most_frequent"]) == 10
    text = unknown_answers.describe({"unknown_answers": found})
    assert text.startswith("the tree knows no name for 96.0% of the answers; most often: 'uni")
    long = unknown_answers.find(said("x" * 900), Taxonomy(TREE))
    assert len(unknown_answers.describe({"unknown_answers": long})) < 150
