r"""Fits offsets to a judge on the devices, and measures what each calibration gains.

    python -m speciarl_jax.tools.calibrate_judge --config=configs/quickstart.py --pairs=gold \
        --config.verifier.flax_judge.weights=JUDGE --out=judge_calibration.json

Half of the labelled pairs, drawn by --seed, fit the offsets; the other half judges them. It prints
how the verdicts on that half agree with the labels: without calibration, `content_free`, and
fitted. `config.verifier.flax_judge.calibration` takes the file.
"""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import ml_collections
import numpy as np
from absl import app, flags
from ml_collections import config_flags

from speciarl_jax.data import tokenizer as tokenizer_lib
from speciarl_jax.models import load_policy
from speciarl_jax.runtime import exit_codes
from speciarl_jax.tools import audit_pairs, audit_verifier
from speciarl_jax.verifiers.category import Category
from speciarl_jax.verifiers.judge import calibration
from speciarl_jax.verifiers.judge.judge_prompt import LABELS

JUDGE = "flax_judge"


def log_probabilities(
    config: ml_collections.ConfigDict, rows: Sequence[audit_pairs.Row], kind: str
) -> tuple[audit_pairs.Verdicts, np.ndarray]:
    """Judges pairs under a calibration.

    Returns:
      The verdicts, and float log-probabilities [R, 6]; -inf where a stated verdict excludes them.
    """
    config = config.copy_and_resolve_references()
    config.verifier[JUDGE].calibration = kind
    tokenizer = tokenizer_lib.load(load_policy.model_folder(config.model.path))
    verifier, label = audit_verifier.build(config, JUDGE, tokenizer, rows)
    think = config.verifier[JUDGE].tags
    found = audit_verifier.judge(verifier, tokenizer, rows, label, think)
    with np.errstate(divide="ignore"):
        return found, np.log(found.probability)


def measure(
    config: ml_collections.ConfigDict, rows: Sequence[audit_pairs.Row], seed: int
) -> tuple[np.ndarray, dict[str, Any], list[str]]:
    """Fits offsets on half of the pairs that the judge is asked about, and compares on the rest.

    Returns:
      float32 [6], figures ("kappa" and "accuracy" by calibration), and lines to print.

    Raises:
      ValueError: the judge is asked about fewer than 20 pairs.
    """
    plain, logp_RK = log_probabilities(config, rows, "")
    empty, _ = log_probabilities(config, rows, calibration.CONTENT_FREE)
    want = audit_pairs.accepted(rows, JUDGE)
    names = [name.replace(" ", "_") for name in LABELS]
    accepted_RK = np.array([[name in row for name in names] for row in want])
    asked = np.isfinite(logp_RK).all(axis=1) & accepted_RK.any(axis=1)
    order = np.random.default_rng(seed).permutation(np.flatnonzero(asked))
    if len(order) < 20:
        raise ValueError(f"the judge is asked about {len(order)} pairs; give at least 20")
    train, test = order[: len(order) // 2], np.sort(order[len(order) // 2 :])
    offset_K = calibration.fit(logp_RK[train], accepted_RK[train])
    fitted = plain._replace(
        category=np.where(asked, np.argmax(logp_RK + offset_K, axis=1), plain.category)
    )
    lines, figures = [f"{len(train)} pairs fit, {len(test)} judge"], {"pairs": len(test)}
    for kind, found in (("none", plain), (calibration.CONTENT_FREE, empty), ("fitted", fitted)):
        figures[kind] = _agreement(found.category[test], accepted_RK[test])
        lines.append(f"{kind:14} " + ", ".join(f"{k} {v:.3f}" for k, v in figures[kind].items()))
    return offset_K, figures, lines


def _agreement(category_R: np.ndarray, accepted_RK: np.ndarray) -> dict[str, float]:
    """Returns kappa and share of right verdicts; the first accepted one is the reference of wrong
    ones, as in `audit_pairs.compare`."""
    right_R = accepted_RK[np.arange(len(category_R)), np.maximum(category_R, 0)]
    right_R &= category_R >= Category.WRONG
    reference_R = np.where(right_R, category_R, np.argmax(accepted_RK, axis=1))
    found = audit_pairs.agreement(reference_R, category_R)
    return {"kappa": found["kappa"] or 0.0, "right": found["accuracy"]}


def main(argv: Sequence[str]) -> None:
    given = flags.FLAGS
    if len(argv) > 1 or given.config is None or not given.out:
        raise app.UsageError("give --config=FILE and --out=FILE.json, and flags only")
    rows = audit_pairs.read_pairs(given.pairs)
    offset_K, figures, lines = measure(given.config, rows, given.seed)
    print("\n".join(lines))
    about: Mapping[str, Any] = {"pairs": given.pairs, "seed": given.seed, "figures": figures}
    calibration.write(pathlib.Path(given.out), offset_K, about)
    print(f"config.verifier.flax_judge.calibration={given.out}")


if __name__ == "__main__":
    config_flags.DEFINE_config_file("config", None, "Configuration.", lock_config=True)
    flags.DEFINE_string("pairs", "gold", "gold, adversarial, or a CSV file.")
    flags.DEFINE_string("out", None, "The file to write.")
    flags.DEFINE_integer("seed", 0, "Draws the halves.")
    exit_codes.run_tool("calibrate_judge", main)
