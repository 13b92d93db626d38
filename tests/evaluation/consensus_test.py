"""One specific-but-safe name from several answers, with a label tree and without."""

import collections
import json

import numpy as np
import pytest

from speciarl_jax.data import emoji, tfds_images
from speciarl_jax.evaluation import consensus
from speciarl_jax.verifiers.label_tree import schema

TREE = {
    "version": 1,
    "groups": {"animal": ["animal", "creature"], "device": ["device"]},
    "leaves": {
        "eagle": {
            "name": "eagle",
            "generic": "animal",
            "synonyms": ["bird of Jove"],
            # In the wrong order; the hawk's says that birds of prey are birds.
            "ancestors": [["bird"], ["bird of prey", "raptor"]],
            "hyponyms": ["bald eagle"],
        },
        "hawk": {
            "name": "hawk",
            "generic": "animal",
            "ancestors": [["bird of prey", "raptor"], ["bird"]],
        },
        "duck": {"name": "duck", "generic": "animal", "ancestors": [["bird"]]},
        "mouse": {"name": "mouse", "generic": "animal", "ancestors": [["rodent"]]},
        "mouse_device": {"name": "mouse", "generic": "device", "ancestors": [["pointer"]]},
    },
}


def said(*names):
    return [f"<think>hm</think> <answer>{name}</answer>" for name in names]


def key(name):
    return consensus.name_of(said(name)[0])


SHIPPED = [
    pytest.param(name, marks=[pytest.mark.slow] * (name == "cars196"))
    for name in sorted(tfds_images.PUBLISHED)
]


@pytest.fixture(scope="module")
def tree():
    return consensus.NameTree(TREE)


@pytest.mark.parametrize(
    "answers, confidence, name, path",
    [
        (["eagle"] * 7 + ["hawk"] * 2 + ["None"], 0.7, "eagle", "eagle .7 prey .9 bird .9"),
        (["eagle"] * 7 + ["hawk"] * 2 + ["None"], 0.8, "bird of prey", "eagle .7 prey .9 bird .9"),
        (["eagle"] * 7 + ["duck"] * 2 + ["None"], 0.8, "bird", "eagle .7 prey .7 bird .9"),
        (["eagle"] * 7 + ["hawk"] * 2 + ["None"], 0.95, None, "eagle .7 prey .9 bird .9"),
        (["Eagles", "a bald-eagle", "raptor", "bird of Jove"], 0.75, "eagle", None),
        (["bald eagle", "bald eagles"], 1.0, "bald eagle", None),
        (["bird", "creature"], 0.5, "bird", None),
        (["bird", "creature"], 0.51, "animal", None),
    ],
)
def test_the_name_is_the_most_specific_one_that_enough_answers_support(
    tree, answers, confidence, name, path
):
    choice = consensus.choose(said(*answers), tree, confidence)
    assert choice.name == name
    if path:
        words = dict(zip(("eagle", "prey", "bird"), path.split()[1::2], strict=True))
        shares = {n.split()[-1]: round(share, 6) for n, share in choice.path}
        assert {k: float(v) for k, v in words.items()}.items() <= shares.items()
    assert [share for _, share in choice.path] == sorted(share for _, share in choice.path)


def test_a_word_of_two_senses_goes_where_the_other_answers_go(tree):
    for other, above in (("rodent", "animal"), ("pointer", "device")):
        choice = consensus.choose(said("mouse", "mouse", other), tree, 0.9)
        assert (choice.name, choice.path[-1]) == (other, (above, 1.0))
        assert choice.path[0] == (f"mouse ({above})", 2 / 3)


def test_without_a_tree_equal_names_support_each_other_and_nothing_else():
    tree = consensus.NameTree()
    choice = consensus.choose(
        said("A Bald-Eagle!", "bald eagle", "eagle", "eagle", "eagle"), tree, 0.5
    )
    assert choice.name == "eagle" and choice.path == [("eagle", 0.6)]
    assert choice.answers == {"bald eagle": 2, "eagle": 3}
    assert consensus.choose(said("a", "b"), tree, 0.6).name is None


def test_answers_that_decline_or_cannot_be_read_support_nothing(tree):
    choice = consensus.choose([*said("None", "I don't know", "eagle", "..."), "eagle"], tree, 0.2)
    assert choice.answers == {"": 2, "eagle": 1, None: 2}
    assert choice.name == "eagle" and choice.agreement == 0.2
    none = consensus.choose(said("None"), tree, 0.5)
    assert none.name is None and none.agreement == 0.0 and none.path == []


@pytest.mark.parametrize("name", SHIPPED)
def test_an_answer_supports_all_that_a_shipped_tree_has_above_it(name):
    data = json.loads((tfds_images.TREES / f"{name}.json").read_text("utf-8"))
    tree = consensus.NameTree(data)
    for leaf in list(data["leaves"].values())[::7]:
        above = [*leaf.get("ancestors", []), *leaf.get("broader", [])]
        above.append(data["groups"][leaf["generic"]])
        implied = tree.implied(key(leaf["name"]))
        for names in above:
            assert key(schema.expand(names[0])[0]) in implied, (leaf["name"], names)
        # Alternatives in brackets are names of their own.
        for synonym in leaf.get("synonyms", []):
            for one in schema.expand(synonym):
                assert key(data["groups"][leaf["generic"]][0]) in tree.implied(key(one)), one
    assert consensus.path_of(said(leaf["name"], leaf["generic"]), tree)[-1] == (
        key(leaf["generic"]),
        1.0,
    )


def test_the_shipped_tree_has_no_two_names_above_each_other():
    tree = consensus.NameTree(json.loads(emoji.TAXONOMY_PATH.read_text()))
    names = [c.name for c in emoji.concepts("all")]
    for name in map(str.lower, names):
        for up in tree.implied(name):
            assert not tree.above(up) & {low for low in [up] if low in tree.above(low)}
            assert all(up not in tree.above(higher) for higher in tree.above(up))
    assert tree.above("eagle") >= {"bird of prey", "bird", "animal"}
    assert "bird" in tree.above("bird of prey") and "bird of prey" not in tree.above("bird")


@pytest.mark.parametrize("seed", range(20))
def test_supports_are_shares_of_answers_below_a_name(seed):
    """On random trees without words of two senses, against a count by parents."""
    rng = np.random.default_rng(seed)
    parent = {f"n{i}": f"n{rng.integers(0, i)}" for i in range(1, 25)}
    inner = set(parent.values())

    def chain(name):
        return [name, *(chain(parent[name]) if name in parent else [])]

    leaves = {}
    for name in parent.keys() - inner:
        *between, _ = chain(name)[1:] or [None]
        leaves[name] = {"name": name, "generic": "n0", "ancestors": [[n] for n in between]}
    tree = consensus.NameTree({"version": 1, "groups": {"n0": ["n0"]}, "leaves": leaves})
    names = rng.choice(sorted(parent), 20).tolist()
    below = collections.Counter(up for name in names for up in set(chain(name)))
    choice = consensus.choose(said(*names), tree, 0.5)
    assert choice.path[-1] == ("n0", 1.0)
    for name, share in choice.path:
        assert share == below[name] / 20
    # What is chosen is the deepest name of at least half of the answers.
    half = [name for name, count in below.items() if count >= 10]
    deepest = max(len(chain(name)) for name in half)
    assert len(chain(choice.name)) == deepest


def test_the_most_frequent_name_counts_declining_but_not_what_cannot_be_read():
    assert consensus.most_frequent(["b", "a", "a", None]) == ("a", 0.5)
    assert consensus.most_frequent(["b", "a"]) == consensus.most_frequent(["a", "b"]) == ("a", 0.5)
    assert consensus.most_frequent(["", "", "cat"]) == ("", 2 / 3)
    assert consensus.most_frequent([None]) == (None, 0.0)


def test_a_sense_of_a_word_is_spoken_as_the_word(tree):
    (name, _), *_ = consensus.path_of(said("mouse", "rodent"), tree)
    assert name == "mouse (animal)" and tree.spoken(name) == "mouse"
    assert tree.spoken("gadget") == "gadget"


def test_nothing_to_choose_from_and_no_share_are_refused(tree):
    for responses, confidence in (([], 0.5), (said("a"), 0.0), (said("a"), 1.1)):
        with pytest.raises(ValueError, match="at least one answer .* above 0 and not above 1"):
            consensus.choose(responses, tree, confidence)
    with pytest.raises(ValueError, match="my tree: version"):
        consensus.NameTree({"version": 2}, "my tree")
