"""Corrects what a small judge prefers whatever it is asked: offsets of its six log-likelihoods.

A judge of few parameters says one verdict to nearly everything. Two corrections add a number to
each verdict's log-likelihood before the likeliest is taken:

- `content_free`: what the judge says about pairs without content is subtracted (contextual
  calibration, Zhao et al., arXiv 2102.09690). It needs no labelled pair.
- a JSON file `{"offsets": {"wrong": 0.3, ...}}`, as `tools/calibrate_judge` fits them to labelled
  pairs.
"""

import json
import pathlib
from collections.abc import Callable, Mapping

import numpy as np

from speciarl_jax.verifiers.judge.judge_prompt import LABELS

CONTENT_FREE = "content_free"
# Words that name nothing, as true label and as answer.
EMPTY_PAIRS = (("n a", "n a"), ("something", "something"), ("xyz", "xyz"))


def offsets(calibration: str, score: Callable[[], np.ndarray]) -> np.ndarray | None:
    """Returns float32 [K], what is added to the log-likelihoods; None for nothing.

    Args:
      calibration: "", `CONTENT_FREE`, or the path of a JSON file.
      score: computes the log-likelihoods [R, K] of the verdicts on `EMPTY_PAIRS`.

    Raises:
      ValueError: the file is missing or damaged, or lacks a verdict.
    """
    if not calibration:
        return None
    if calibration == CONTENT_FREE:
        logp_RK = np.asarray(score(), np.float64)
        return _centred(-(logp_RK - _logsumexp(logp_RK)).mean(axis=0))
    key = f"config.verifier.flax_judge.calibration is {calibration!r}"
    try:
        found = json.loads(pathlib.Path(calibration).read_text("utf-8"))["offsets"]
        return np.array([float(found[name]) for name in LABELS], np.float32)
    except OSError as error:
        raise ValueError(
            f"{key}, which cannot be read ({error.strerror}); give '', {CONTENT_FREE!r}, or a file "
            "of speciarl_jax.tools.calibrate_judge"
        ) from None
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{key}, which holds no number for each of {list(LABELS)} ({error!r}); write it by "
            "speciarl_jax.tools.calibrate_judge"
        ) from None


def fit(logp_RK: np.ndarray, accepted_RK: np.ndarray, penalty: float = 1.0) -> np.ndarray:
    """Fits offsets to labelled pairs by maximum likelihood, with a penalty on their squares.

    Args:
      logp_RK: log-likelihoods of the verdicts, without offsets.
      accepted_RK: bool, verdicts that count as right; at least one a pair.
      penalty: pairs as which the prior of no offset counts.

    Returns:
      float32 [K], whose mean is 0.
    """
    from scipy.optimize import minimize

    logp_RK = np.asarray(logp_RK, np.float64)

    def loss(offset_K):
        moved_RK = logp_RK + offset_K
        moved_RK -= _logsumexp(moved_RK)
        right_RK = np.where(accepted_RK, moved_RK, -np.inf)
        right_R1 = _logsumexp(right_RK)
        slope_RK = np.exp(moved_RK) - np.exp(right_RK - right_R1)
        value = -right_R1.sum() + penalty * np.sum(offset_K**2) / 2
        return value, slope_RK.sum(axis=0) + penalty * offset_K

    return _centred(minimize(loss, np.zeros(logp_RK.shape[1]), jac=True).x)


def write(path: pathlib.Path, offset_K: np.ndarray, figures: Mapping[str, object]) -> None:
    """Writes offsets with the figures of their fit, as `offsets` reads them."""
    found = {name: round(float(x), 6) for name, x in zip(LABELS, offset_K, strict=True)}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"offsets": found, **figures}, indent=1) + "\n", "utf-8")


def _logsumexp(x_RK: np.ndarray) -> np.ndarray:
    return np.logaddexp.reduce(x_RK, axis=-1, keepdims=True)


def _centred(x_K: np.ndarray) -> np.ndarray:
    return (x_K - x_K.mean()).astype(np.float32)
