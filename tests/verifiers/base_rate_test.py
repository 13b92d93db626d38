"""Base rates on the device equal a count over all labels on the host."""

import json

import jax
import numpy as np
import pytest

from speciarl_jax.data import emoji, tfds_images
from speciarl_jax.verifiers import cascade
from speciarl_jax.verifiers.base import InGraphVerdicts
from speciarl_jax.verifiers.category import Category
from speciarl_jax.verifiers.taxonomy import Taxonomy, TaxonomyVerifier

BYTES = [bytes([i]) for i in range(256)]
WIDTH = 96
verify = jax.jit(lambda verifier, *batch: verifier.verify_in_detail(*batch))


def tree_of(name):
    path = emoji.TAXONOMY_PATH if name == "emoji" else tfds_images.TREES / f"{name}.json"
    return Taxonomy(json.loads(path.read_text("utf-8")))


def tokens_of(texts):
    tokens = np.zeros((len(texts), 1, WIDTH), np.int32)
    mask = np.zeros(tokens.shape, bool)
    for i, text in enumerate(texts):
        raw = f"<answer>{text}</answer>".encode()
        tokens[i, 0, : len(raw)], mask[i, 0, : len(raw)] = list(raw), True
    return tokens, mask


def counted(tree, text, share_F):
    """The rate, by asking the oracle about every label."""
    categories = [tree.category(text, leaf_id) for leaf_id in tree.leaf_ids]
    return sum(s for s, c in zip(share_F, categories, strict=True) if c >= Category.GENERIC)


@pytest.mark.parametrize("name", ["emoji", "cifar100"])
def test_base_rates_equal_a_count_over_all_labels(name):
    tree, rng = tree_of(name), np.random.default_rng(0)
    # A quarter of the labels are not in training at all.
    share_F = rng.dirichlet(np.ones(len(tree.leaf_ids))) * (rng.random(len(tree.leaf_ids)) > 0.25)
    share_F /= share_F.sum()
    names = [tree.names[i] for i in rng.choice(len(tree.names), 40, replace=False)]
    texts = ["animal", "An animal.", "a photo of a plant", "vehicles", "None", "or", ""]
    texts += [f"small {one}" for one in names[:5]] + [f"{one} (animal)" for one in names[5:10]]
    texts += [f"{one} or {two}" for one, two in zip(names[:5], names[5:10], strict=True)] + names
    texts = [text for text in texts if len(text) < WIDTH - 20]
    leaf = rng.integers(len(tree.leaf_ids), size=len(texts)).astype(np.int32)
    verifier = TaxonomyVerifier(tree, BYTES)
    plain = verify(verifier, *tokens_of(texts), leaf)
    found = verify(verifier.with_label_shares(share_F), *tokens_of(texts), leaf)
    # An answer that cannot be read is right for none.
    want = [counted(tree, text, share_F) for text in texts]
    np.testing.assert_allclose(found.base_rate_BN[:, 0], want, atol=1e-5)
    assert len({round(rate, 4) for rate in want}) > 10 and max(want) > 0.2 and min(want) == 0
    # The rest is as without label shares.
    assert plain.base_rate_BN is None
    for one, other in zip(plain[:2] + plain[3:5], found[:2] + found[3:5], strict=True):
        np.testing.assert_array_equal(one, other)


def test_one_word_for_all_training_images_has_base_rate_one():
    tree = tree_of("cifar100")
    animals = [tree.data["leaves"][leaf]["generic"] == "animal" for leaf in tree.leaf_ids]
    verifier = TaxonomyVerifier(tree, BYTES).with_label_shares(np.array(animals) / sum(animals))
    batch = tokens_of(["animal", "mammal", "beaver", "plant"])
    leaf = np.full(4, tree.leaf_index("cifar100/beaver"), np.int32)
    found = verify(verifier, *batch, leaf).base_rate_BN[:, 0]
    np.testing.assert_allclose(found, [1, 25 / 45, 1 / 45, 0], atol=1e-5)


@pytest.mark.parametrize("share", [np.ones(100), np.ones(3) / 3, np.r_[1.5, -0.5, np.zeros(98)]])
def test_what_is_no_share_of_each_leaf_is_refused(share):
    verifier = TaxonomyVerifier(tree_of("cifar100"), BYTES)
    with pytest.raises(ValueError, match="one share of the training images for each of the 100"):
        verifier.with_label_shares(share)


class Judge:
    """An in-graph judge that finds everything generic."""

    def verify_in_detail(self, tokens_BNT, mask_BNT, label_index_B):
        shape = tokens_BNT.shape[:2]
        ones = np.ones(shape, np.float32)
        return InGraphVerdicts(np.full(shape, 2), np.ones(shape, bool), ones)


def test_what_a_judge_accepts_counts_as_the_broadest_name_of_its_category():
    tree = tree_of("cifar100")
    share_F = np.ones(100) / 100
    both = cascade.Cascade(TaxonomyVerifier(tree, BYTES), Judge()).with_label_shares(share_F)
    leaf = np.full(2, tree.leaf_index("cifar100/beaver"), np.int32)
    answers = tokens_of(["hairy thing of the river", "rodent"])
    found = jax.jit(both.verify_in_detail)(*answers, leaf)
    assert np.asarray(found.matched_BN)[:, 0].tolist() == [False, True]
    assert np.asarray(found.category_BN)[:, 0].tolist() == [2, 3]
    # "animal" holds for 45 classes, and is the broadest generic name; "rodent" for five.
    np.testing.assert_allclose(found.base_rate_BN[:, 0], [0.45, 0.05], atol=1e-5)
