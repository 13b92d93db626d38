"""What a group agrees on equals what sets of labels say on the host."""

import json

import jax
import numpy as np
import pytest

from speciarl_jax.data import tfds_images
from speciarl_jax.evaluation import consensus
from speciarl_jax.verifiers import group_consensus
from speciarl_jax.verifiers.category import Category
from speciarl_jax.verifiers.taxonomy import Taxonomy, TaxonomyVerifier

BYTES = [bytes([i]) for i in range(256)]
WIDTH = 64
WRONG, ABSTAIN, UNPARSED = int(Category.WRONG), int(Category.ABSTAIN), int(Category.UNPARSED)
GENERIC, LESS, SPECIFIC, MORE = map(int, sorted(Category)[3:])


@pytest.fixture(scope="module")
def tree():
    return Taxonomy(json.loads((tfds_images.TREES / "cifar100.json").read_text("utf-8")))


@pytest.fixture(scope="module")
def judge(tree):
    verifier = TaxonomyVerifier(tree, BYTES).with_every_label()

    @jax.jit
    def verdicts(tokens_BNT, mask_BNT, leaf_B):
        found = verifier.verify_in_detail(tokens_BNT, mask_BNT, leaf_B)
        of = [
            group_consensus.verdicts(found.category_BNF, found.answer_BN, confidence=value)
            for value in (0.3, 0.5, 0.8)
        ]
        return found, of

    def of(groups, confidence):
        count = max(map(len, groups))
        tokens = np.zeros((len(groups), count, WIDTH), np.int32)
        mask = np.zeros(tokens.shape, bool)
        for b, group in enumerate(groups):
            for n, text in enumerate(group):
                raw = f"<answer>{text}</answer>".encode() if text is not None else b"no tags"
                tokens[b, n, : len(raw)], mask[b, n, : len(raw)] = list(raw), True
        found, of = verdicts(tokens, mask, np.full(len(groups), -1, np.int32))
        return found, of[(0.3, 0.5, 0.8).index(confidence)]

    return of


def by_sets(tree, group, confidence):
    """The rule of the module, with sets."""
    leaves, hyponym, named = [], [], {}
    for text in group:
        categories = [
            UNPARSED if not text else int(tree.category(text, leaf_id)) for leaf_id in tree.leaf_ids
        ]
        leaves.append({i for i, c in enumerate(categories) if c >= GENERIC})
        hyponym.append(MORE in categories)
        named[text] = categories
    implies = [
        [
            bool(below) and below <= above and (not hyponym[i] or group[i] == group[j])
            for j, below in enumerate(leaves)
        ]
        for i, above in enumerate(leaves)
    ]
    support = [sum(row) / len(group) for row in implies]
    left = [i for i in range(len(group)) if leaves[i] and support[i] >= confidence - 1e-6]
    chosen = None
    while left:
        chosen = max(left, key=lambda i: (support[i], -i))
        left = [i for i in left if implies[chosen][i] and not implies[i][chosen]]
    if chosen is None:
        return None, None
    leaf = min(leaves[chosen])
    found = [named[text][leaf] for text in group]
    wrong = [c >= GENERIC and not implies[i][chosen] for i, c in enumerate(found)]
    return chosen, [WRONG if w else c for w, c in zip(wrong, found, strict=True)]


@pytest.mark.parametrize("confidence", [0.3, 0.5, 0.8])
def test_verdicts_equal_those_of_sets(tree, judge, confidence):
    rng = np.random.default_rng(0)
    kinds = ["animal", "mammal", "bear", "wolf", "fish", "shark", "vehicle", "bus", "tree", "mouse"]
    kinds += ["oak tree", "great white shark", "none", "I do not know", "rubbish", "", None]
    groups = []
    for _ in range(60):
        # Groups that agree to every degree: some few names, given again and again.
        few = rng.choice(len(kinds), rng.integers(1, 6))
        groups.append([kinds[i] for i in rng.choice(few, 8)])
    found, agreed = judge(groups, confidence)
    assert not np.any(found.valid_BN)  # no label, no verdict of the verifier's own
    names = set()
    for b, group in enumerate(groups):
        chosen, want = by_sets(tree, group, confidence)
        assert np.all(agreed.valid_BN[b] == (chosen is not None)), group
        if chosen is None:
            assert agreed.support_B[b] == 0 and np.all(agreed.category_BN[b] == UNPARSED)
            continue
        names.add(group[chosen])
        assert agreed.category_BN[b].tolist() == want, (group, group[chosen])
    assert len(names) >= 6


def test_it_is_the_rule_of_evaluation_where_the_names_were_given(tree, judge):
    names = consensus.NameTree(tree.data)
    groups = [
        ["animal", "bear", "bear", "wolf", "bear", "animal", "bear", "bus"],
        ["animal", "bear", "wolf", "animal", "mammal", "mammal", "bus", "animal"],
        ["bus", "vehicle", "vehicle", "bus", "bus", "vehicle", "bear", "none"],
    ]
    want = [
        ("bear", [GENERIC, SPECIFIC, SPECIFIC, WRONG, SPECIFIC, GENERIC, SPECIFIC, WRONG]),
        ("mammal", None),
        ("bus", [SPECIFIC, GENERIC, GENERIC, SPECIFIC, SPECIFIC, GENERIC, WRONG, ABSTAIN]),
    ]
    _, agreed = judge(groups, 0.3)
    for b, (group, (name, categories)) in enumerate(zip(groups, want, strict=True)):
        responses = [f"<answer>{text}</answer>" for text in group]
        assert consensus.choose(responses, names, 0.3).name == name
        if categories is not None:
            assert agreed.category_BN[b].tolist() == categories
    # Bears and wolves are mammals, and neither has the support.
    _, unsure = judge(groups[1:2], 0.5)
    right = np.asarray(unsure.category_BN[0]) >= GENERIC
    assert right.tolist() == [text in ("animal", "mammal") for text in groups[1]]


def test_a_name_below_a_label_is_supported_by_itself_alone(judge):
    white = "great white shark"
    _, agreed = judge([["shark"] * 5 + [white] * 3, [white] * 6 + ["fish"] * 2], 0.5)
    assert agreed.category_BN.tolist() == [[SPECIFIC] * 5 + [WRONG] * 3, [MORE] * 6 + [LESS] * 2]
    np.testing.assert_allclose(agreed.support_B, [1.0, 0.75])


@pytest.mark.parametrize("confidence", [0.0, 1.5, -1])
def test_a_confidence_that_is_no_share_is_refused(confidence):
    with pytest.raises(ValueError, match="consensus_confidence is"):
        group_consensus.verdicts(
            np.zeros((1, 2, 3), np.int8), np.zeros((1, 2), np.uint32), confidence=confidence
        )
