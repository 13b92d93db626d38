"""Offsets of a judge: fitted to pairs, taken from pairs without content, read from files."""

import json

import numpy as np
import pytest

from speciarl_jax.verifiers.judge import calibration
from speciarl_jax.verifiers.judge.judge_prompt import LABELS


def log_softmax(x):
    return x - np.logaddexp.reduce(x, axis=-1, keepdims=True)


def biased(rng, pairs, bias):
    """Log-likelihoods of a judge that knows the verdicts, but likes some of them too much."""
    truth = rng.integers(0, 6, pairs)
    accepted = np.eye(6, dtype=bool)[truth]
    return log_softmax(2.0 * accepted + rng.gumbel(size=(pairs, 6)) + bias), accepted


BIAS = np.array([0.0, -2.0, 1.0, 0.0, 4.0, -1.0])


def test_the_fit_undoes_what_a_judge_prefers():
    rng = np.random.default_rng(0)
    logp, accepted = biased(rng, 4000, BIAS)
    offset = calibration.fit(logp, accepted)
    assert offset.dtype == np.float32 and abs(offset.mean()) < 1e-6
    np.testing.assert_allclose(offset, BIAS.mean() - BIAS, atol=0.5)
    fresh, truth = biased(rng, 2000, BIAS)

    def right(x):
        return np.mean(np.argmax(x, axis=1) == np.argmax(truth, axis=1))

    assert right(fresh + offset) > right(fresh) + 0.2


def test_the_fit_is_the_maximum_of_the_penalised_likelihood():
    logp, accepted = biased(np.random.default_rng(1), 50, BIAS)
    accepted[:, 5] |= accepted[:, 4]  # pairs that accept two verdicts

    def value(offset):
        moved = log_softmax(logp + offset)
        inside = np.where(accepted, np.exp(moved), 0).sum(axis=1)
        return np.log(inside).sum() - 3.0 * np.sum(offset**2) / 2

    best = calibration.fit(logp, accepted, penalty=3.0).astype(float)
    for step in np.vstack([np.eye(6), -np.eye(6)]) * 0.05:
        assert value(best) > value(best + step - step.mean())


def test_pairs_without_content_are_subtracted():
    logp = np.tile(BIAS, (3, 1)) + np.array([[0.0], [5.0], [-2.0]])
    offset = calibration.offsets("content_free", lambda: logp)
    np.testing.assert_allclose(offset, BIAS.mean() - BIAS, atol=1e-6)
    assert calibration.offsets("", pytest.fail) is None


def test_a_file_gives_its_offsets_and_a_damaged_one_is_refused(tmp_path):
    path = tmp_path / "judge" / "offsets.json"
    calibration.write(path, np.arange(6, dtype=np.float32), {"pairs": "gold"})
    np.testing.assert_array_equal(calibration.offsets(str(path), pytest.fail), np.arange(6))
    with pytest.raises(ValueError, match="calibration is .*missing.json.* cannot be read"):
        calibration.offsets(str(tmp_path / "missing.json"), pytest.fail)
    content = json.loads(path.read_text())
    del content["offsets"][next(iter(LABELS))]
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match="holds no number for each of .*KeyError.*'wrong'"):
        calibration.offsets(str(path), pytest.fail)
