"""Agreement of verdicts against numbers worked out by hand and by another formula."""

import numpy as np
import pytest

from speciarl_jax.tools import agreement
from speciarl_jax.verifiers.category import Category

W, A, G, S = Category.WRONG, Category.ABSTAIN, Category.GENERIC, Category.SPECIFIC


def test_the_figures_are_those_of_a_small_example():
    # Cohen's own layout: 20 of 50 agree on yes, 15 on no, 5 and 10 differ; kappa is 0.4.
    reference = [S] * 25 + [W] * 25
    other = [S] * 20 + [W] * 5 + [S] * 10 + [W] * 15
    found = agreement.agreement(reference, other)
    assert found.accuracy == pytest.approx(0.7) and found.kappa == pytest.approx(0.4)
    s, w = S + 1, W + 1
    assert found.matrix[s, s] == 20 and found.matrix[s, w] == 5
    assert found.matrix[w, s] == 10 and found.matrix[w, w] == 15 and found.matrix.sum() == 50
    assert found.precision[s] == pytest.approx(20 / 30) and found.recall[s] == pytest.approx(0.8)
    assert found.precision[w] == pytest.approx(15 / 20) and found.recall[w] == pytest.approx(0.6)
    assert np.isnan(found.precision[G + 1]) and np.isnan(found.recall[A + 1])
    printed = agreement.table(found, "people", "judge")
    assert "rows: people, columns: judge" in printed and "kappa 0.400" in printed
    assert "generic" not in printed


def test_kappa_from_the_definition_on_random_verdicts():
    rng = np.random.default_rng(0)
    reference, noise = rng.integers(-1, 6, (2, 4000))
    other = np.where(rng.random(4000) < 0.6, reference, noise)
    found = agreement.agreement(reference, other)
    chance = sum(np.mean(reference == c) * np.mean(other == c) for c in range(-1, 6))
    observed = np.mean(reference == other)
    assert found.kappa == pytest.approx((observed - chance) / (1 - chance))
    same = agreement.agreement(reference, reference)
    assert same.kappa == pytest.approx(1) and np.allclose(same.precision, 1)
    swapped = agreement.agreement(other, reference)
    np.testing.assert_array_equal(swapped.matrix, found.matrix.T)
    np.testing.assert_allclose(swapped.precision, found.recall)


def test_agreement_by_chance_alone_has_no_kappa_and_unequal_lengths_are_refused():
    assert np.isnan(agreement.agreement([S, S], [S, S]).kappa)
    with pytest.raises(ValueError, match="2 verdicts cannot be compared with 1"):
        agreement.agreement([S, S], [S])
    with pytest.raises(ValueError, match="0 verdicts"):
        agreement.agreement([], [])
