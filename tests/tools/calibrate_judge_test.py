"""Calibration of a judge by labelled pairs: what is fitted, on which half, and what it gains."""

import json

import numpy as np
import pytest

from speciarl_jax.tools import audit_pairs, calibrate_judge
from speciarl_jax.verifiers.judge.judge_prompt import LABELS

NAMES = [name.replace(" ", "_") for name in LABELS]


def biased(pairs, seed=0):
    """Pairs, and what a judge says that knows much and likes "specific" too well."""
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, 6, pairs)
    rows = [
        {"truth": "x", "prediction": f"p{i}", "category": NAMES[t]} for i, t in enumerate(truth)
    ]
    scores = 3.0 * np.eye(6)[truth] + rng.gumbel(size=(pairs, 6)) + [0, 0, 0, 0, 6.0, 0]
    empty = np.array([0.5, 0.5, 0.5, 0.5, -2.5, 0.5], np.float32)
    scores = scores + empty
    probability = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
    category = np.argmax(probability, axis=1)
    return rows, audit_pairs.Verdicts(category, np.ones(pairs, bool), probability), empty


def test_each_calibration_is_measured_on_pairs_that_it_was_not_fitted_to():
    rows, found, empty = biased(2000)
    offset, figures, lines = calibrate_judge.measure(rows, found, empty, seed=1)
    assert figures["pairs"] == 1000 and lines[0] == "1000 pairs fit, 1000 judge"
    kappas = [figures[kind]["kappa"] for kind in ("none", "content_free", "fitted")]
    assert kappas[0] + 0.1 < kappas[1] < kappas[2] > 0.7
    assert offset[4] < offset[[0, 1, 2, 3, 5]].min() - 4
    again, *_ = calibrate_judge.measure(rows, found, empty, seed=1)
    other, *_ = calibrate_judge.measure(rows, found, empty, seed=2)
    np.testing.assert_array_equal(offset, again)
    assert (offset != other).any()


def test_stated_verdicts_are_neither_fitted_nor_counted():
    rows, found, empty = biased(60)
    found.probability[:30] = np.eye(6)[0]
    assert calibrate_judge.measure(rows, found, empty, 0)[1]["pairs"] == 15
    found.probability[:50] = np.eye(6)[0]
    with pytest.raises(ValueError, match="asked about 10 pairs; give at least 20"):
        calibrate_judge.measure(rows, found, empty, 0)


def test_the_file_is_what_the_judge_reads(tmp_path):
    from speciarl_jax.verifiers.judge import calibration

    rows, found, empty = biased(100)
    offset, figures, _ = calibrate_judge.measure(rows, found, empty, 0)
    path = tmp_path / "offsets.json"
    calibration.write(path, offset, {"figures": figures})
    np.testing.assert_allclose(calibration.offsets(str(path), pytest.fail), offset, atol=1e-6)
    assert json.loads(path.read_text())["figures"]["none"]["kappa"] == figures["none"]["kappa"]
