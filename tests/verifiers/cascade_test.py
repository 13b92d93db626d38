"""A cascade inside a program and on the host: who decides, and that both put verdicts in place."""

import concurrent.futures

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from speciarl_jax.verifiers import cascade
from speciarl_jax.verifiers.base import HostVerifier, InGraphVerdicts, Verdicts
from speciarl_jax.verifiers.category import Category
from speciarl_jax.verifiers.taxonomy import Taxonomy, TaxonomyVerifier

TREE = {
    "version": 1,
    "groups": {"animal": ["animal"]},
    "leaves": {
        "eagle": {"name": "eagle", "generic": "animal", "ancestors": [["bird"]]},
        "mouse": {"name": "mouse", "generic": "animal"},
    },
}
TREE_OPTIONS = {
    "path": "",
    "tags": "answer",
    "max_words": 8,
    "max_answer_bytes": 64,
    "max_response_bytes": 256,
}
# What is said about the eagle, and what the tree makes of it; None: it does not know.
SAID = {
    "eagle": Category.SPECIFIC,
    "bird": Category.LESS_SPECIFIC,
    "animal": Category.GENERIC,
    "mouse": Category.WRONG,
    "I cannot tell": Category.ABSTAIN,
    "golden eagle": None,
    "eagle or mouse": None,
    "": Category.UNPARSED,
}
VOCABULARY = [bytes([i]) for i in range(256)]


def answers():
    return [f"<answer>{said}</answer>" for said in SAID]


def tokens_of(texts):
    tokens = np.zeros((1, len(texts), 64), np.int32)
    mask = np.zeros(tokens.shape, bool)
    for n, text in enumerate(texts):
        raw = list(text.encode())
        tokens[0, n, : len(raw)], mask[0, n, : len(raw)] = raw, True
    return jnp.asarray(tokens), jnp.asarray(mask), jnp.zeros(1, jnp.int32)


@flax.struct.dataclass
class Constant:
    """Calls everything more specific, or has no verdict on anything."""

    valid: jax.Array

    def verify_in_detail(self, tokens_BNT, mask_BNT, label_index_B):
        shape = tokens_BNT.shape[:2]
        category = jnp.full(shape, int(Category.MORE_SPECIFIC))
        return InGraphVerdicts(
            category, jnp.full(shape, self.valid), jnp.full(shape, 0.75, jnp.float32)
        )


@pytest.mark.slow
@pytest.mark.parametrize("valid", [True, False])
def test_inside_a_program_the_tree_comes_first(valid):
    tree = TaxonomyVerifier(Taxonomy(TREE), VOCABULARY)
    both = cascade.Cascade(tree, Constant(jnp.asarray(valid)))
    found = jax.jit(lambda v, *batch: v.verify_in_detail(*batch))(both, *tokens_of(answers()))
    for n, want in enumerate(SAID.values()):
        by_tree = want is not None
        assert bool(found.matched_BN[0, n]) == by_tree
        assert bool(found.valid_BN[0, n]) == (by_tree or valid)
        assert int(found.category_BN[0, n]) == (want if by_tree else Category.MORE_SPECIFIC)
        assert bool(jnp.isnan(found.probability_BN[0, n])) == by_tree
    category, valid_BN = both.verify(*tokens_of(answers()))
    np.testing.assert_array_equal(category, found.category_BN)
    np.testing.assert_array_equal(valid_BN, found.valid_BN)


class Judge(HostVerifier):
    """Keeps what it is asked; has no verdict on "golden eagle"."""

    def __init__(self):
        self.asked, self.closed = [], False

    def submit(self, responses, label_index):
        self.asked += list(zip((text for (text,) in responses), label_index, strict=True))
        done = concurrent.futures.Future()
        shape = (len(responses), 1)
        valid = np.array(["golden" not in text for (text,) in responses]).reshape(shape)
        done.set_result(
            Verdicts(
                np.where(valid, int(Category.GENERIC), int(Category.UNPARSED)).astype(np.int32),
                valid,
                np.ones(shape, bool),
                np.full(shape, 2.0, np.float32),
            )
        )
        return done

    def errors(self):
        return "away"

    def close(self):
        self.closed = True


def test_on_the_host_the_judge_gets_the_rest_and_its_verdicts_find_their_places():
    judge = Judge()
    both = cascade.HostCascade(Taxonomy(TREE), judge, tags="answer")
    texts = answers()
    found = both.submit([texts, texts[::-1]], [0, 0]).result()
    assert {text for text, _ in judge.asked} == {
        "<answer>golden eagle</answer>",
        "<answer>eagle or mouse</answer>",
    }
    assert len(judge.asked) == 4
    for row, order in ((0, 1), (1, -1)):
        for n, (said, want) in enumerate(list(SAID.items())[::order]):
            by_tree = want is not None
            judged = Category.UNPARSED if said == "golden eagle" else Category.GENERIC
            assert found.matched_BN[row, n] == found.valid_BN[row, n] or not by_tree
            assert found.category_BN[row, n] == (want if by_tree else judged)
            assert found.valid_BN[row, n] == (by_tree or said != "golden eagle")
            assert found.cached_BN[row, n] == (not by_tree)
            assert np.isnan(found.seconds_BN[row, n]) == by_tree
    assert found.probability_BN is None and both.errors() == "away"
    both.close()
    assert judge.closed


def test_a_failure_of_the_judge_reaches_whoever_waits():
    class Broken(Judge):
        def submit(self, responses, label_index):
            done = concurrent.futures.Future()
            done.set_exception(RuntimeError("no devices"))
            return done

    both = cascade.HostCascade(Taxonomy(TREE), Broken(), tags="answer")
    with pytest.raises(RuntimeError, match="no devices"):
        both.submit([["<answer>golden eagle</answer>"]], [0]).result()


def created(tmp_path, judge, labels=None):
    import json

    path = tmp_path / "tree.json"
    path.write_text(json.dumps(TREE))
    tree = Taxonomy(TREE if labels is None else labels)
    return cascade.create(
        VOCABULARY, str(path), make=lambda name: (tree, Judge()), judge=judge, **TREE_OPTIONS
    )


def test_without_a_judge_it_is_the_tree_and_other_labels_are_refused(tmp_path):
    _, verifier = created(tmp_path, "")
    assert isinstance(verifier, TaxonomyVerifier)
    labels, verifier = created(tmp_path, "http_judge")
    assert isinstance(verifier, cascade.HostCascade) and labels.leaf_ids == ("eagle", "mouse")
    other = {**TREE, "leaves": {"eagle": TREE["leaves"]["eagle"]}}
    with pytest.raises(ValueError, match="http_judge.path has other labels .* leave it empty"):
        created(tmp_path, "http_judge", other)
