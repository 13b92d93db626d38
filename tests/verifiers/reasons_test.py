"""Why an answer got its category, in words."""

import pytest

from speciarl_jax.verifiers.category import Category
from speciarl_jax.verifiers.label_tree import reasons
from speciarl_jax.verifiers.taxonomy import Taxonomy

TREE = {
    "version": 1,
    "groups": {"bird": ["bird", "birds of the world"]},
    "leaves": {
        "sparrow": {
            "name": "[House|English] Sparrow",
            "generic": "bird",
            "synonyms": ["Passer domesticus"],
            "ancestors": [["Old World sparrow", "passerid"], ["passerine"]],
            "broader": [["songbird", "oscine"]],
            "hyponyms": ["Italian sparrow"],
        },
        "finch": {"name": "House Finch", "generic": "bird", "synonyms": ["linnet"]},
        "linnet": {
            "name": "Linnet",
            "generic": "bird",
            "ancestors": [["true finch"]],
            "hyponyms": ["Scottish linnet"],
        },
    },
}
WHY = reasons.Reasons(Taxonomy(TREE))


@pytest.mark.parametrize(
    "answer, category, reason",
    [
        ("english sparrow", "specific", "name 'English Sparrow'"),
        ("passerid", "less_specific", "ancestor 1 'passerid' of the node 'Old World sparrow'"),
        ("passerine", "less_specific", "ancestor 2 'passerine'"),
        # Broader ancestors have numbers of their own.
        ("oscine", "generic", "broader ancestor 1 'oscine' of the node 'songbird'"),
        ("bird", "generic", "group 'bird'"),
        ("Italian sparrow", "more_specific", "hyponym 'Italian sparrow'"),
        ("house finch", "wrong", "is a name of 'House Finch'"),
        # A synonym of one label, and another's own name: that one is meant.
        ("linnet", "wrong", "is a name of 'Linnet'"),
        ("Scottish linnet", "wrong", "is a kind of 'Linnet'"),
        ("true finch", "wrong", "is a broader name of other labels, such as 'Linnet'"),
        ("unicorn", "wrong", "no name of the tree"),
        ("unknown", "abstain", "abstention"),
        ("!", "unparsed", "no answer can be read"),
        (None, "unparsed", "no answer can be read"),
    ],
)
def test_the_name_that_matched_or_what_a_wrong_answer_means(answer, category, reason):
    assert WHY.explain(answer, "sparrow") == (Category[category.upper()], reason)
    assert WHY.knows(answer) == (answer != "unicorn")


def test_the_node_of_a_synonym_is_named():
    found, reason = WHY.explain("Passer domesticus", "sparrow")
    assert found == Category.SPECIFIC and reason.startswith("synonym 'Passer domesticus' of '")
