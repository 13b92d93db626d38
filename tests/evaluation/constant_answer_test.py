"""The best constant answer against every name of the tree tried by the verifier itself."""

import numpy as np
import pytest

from speciarl_jax.data import emoji
from speciarl_jax.evaluation import constant_answer, metrics
from speciarl_jax.verifiers.label_tree import schema
from speciarl_jax.verifiers.taxonomy import Taxonomy

TREE = {
    "version": 1,
    "groups": {"animal": ["animal", "creature"], "device": ["device"]},
    "leaves": {
        "eagle": {"name": "Eagle", "generic": "animal", "ancestors": [["bird", "fowl"]]},
        "hawk": {"name": "hawk", "generic": "animal", "ancestors": [["bird", "fowl"]]},
        "mouse": {"name": "mouse", "generic": "animal"},
        "phone": {"name": "phone", "generic": "device"},
    },
}


@pytest.fixture(scope="module")
def labels():
    return Taxonomy(schema.read(emoji.TAXONOMY_PATH))


@pytest.mark.parametrize("preset", sorted(metrics.PRESETS))
@pytest.mark.parametrize("seed", range(2))
def test_no_name_of_the_tree_scores_better(labels, preset, seed):
    """The verifier judges each name about each image."""
    rng, weights = np.random.default_rng(seed), metrics.PRESETS[preset]
    leaves = rng.choice(labels.leaf_ids, 8, replace=False)
    shown = rng.choice(leaves, 40, p=rng.dirichlet(np.ones(8) * 0.7)).tolist()
    found = constant_answer.best(shown, labels, weights)

    def said(name):
        verdicts = {leaf_id: labels.category(name, leaf_id) for leaf_id in set(shown)}
        return metrics.score(np.array([verdicts[leaf_id] for leaf_id in shown]), weights)

    around = set().union(*(labels.relations[labels.leaf_index(leaf_id)] for leaf_id in set(shown)))
    every = [said(key.decode()) for key in around]
    assert found["hm"] == max(score.hm for score in every)
    (score,) = constant_answer.scores([{"data": "a", "constant_answer": found}]).values()
    assert score == said(found["answer"])


def test_it_depends_on_the_weights_and_on_how_often_labels_occur():
    labels, authors = Taxonomy(TREE), metrics.PRESETS["authors"]
    shown = ["eagle"] * 3 + ["hawk"] * 3 + ["mouse"] * 2 + ["phone"] * 2
    found = constant_answer.best(shown, labels, authors)
    assert (found["answer"], found["correctness"], found["specificity"]) == ("bird", 0.6, 0.6)
    assert found["hm"] == pytest.approx(0.6)
    assert found["histogram"]["less_specific"] == 6 and found["histogram"]["wrong"] == 4
    # Where generic names are worth as much as others, the broadest of them is best.
    found = constant_answer.best(shown, labels, authors | {"generic": 0.9})
    assert (found["answer"], found["correctness"]) == ("animal", 0.8)
    found = constant_answer.best(["eagle"] * 9 + ["phone"], labels, authors)
    assert (found["answer"], found["hm"]) == ("eagle", pytest.approx(2 * 0.9 / 1.9))
    # Nothing is correct if correct answers are worth nothing; the score says so.
    none = dict.fromkeys(authors, 0.0)
    assert constant_answer.best(shown, labels, none)["hm"] == 0


def test_each_data_set_has_one_in_a_table_and_judges_without_a_tree_none():
    row = constant_answer.best(["eagle"], Taxonomy(TREE), metrics.PRESETS["thirds"])
    runs = [
        {"policy": "base", "data": "birds", "constant_answer": row},
        {"policy": "trained", "data": "birds", "constant_answer": row | {"answer": "other"}},
    ]
    assert list(constant_answer.scores(runs)) == ['best constant answer "eagle"']
    runs.append({"policy": "base", "data": "cars"})
    assert list(constant_answer.scores(runs)) == ['best constant answer "eagle", birds']
    assert constant_answer.scores(runs[2:]) == {} == constant_answer.scores([])
