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
from speciarl_jax.verifiers.judge import calibration
from speciarl_jax.verifiers.judge.judge_prompt import LABELS

JUDGE = "flax_judge"


def judge(
    config: ml_collections.ConfigDict, rows: Sequence[audit_pairs.Row]
) -> tuple[audit_pairs.Verdicts, np.ndarray]:
    """Judges pairs with the calibration `content_free`.

    Returns:
      The verdicts with their probabilities, and the float32 offsets [6] of that calibration.
    """
    config = config.copy_and_resolve_references()
    config.verifier[JUDGE].calibration = calibration.CONTENT_FREE
    tokenizer = tokenizer_lib.load(load_policy.model_folder(config.model.path))
    verifier, label = audit_verifier.build(config, JUDGE, tokenizer, rows)
    found = audit_verifier.judge(verifier, tokenizer, rows, label, config.verifier[JUDGE].tags)
    return found, np.asarray(verifier.scorer.offset_K)


def measure(
    rows: Sequence[audit_pairs.Row], found: audit_pairs.Verdicts, empty_K: np.ndarray, seed: int
) -> tuple[np.ndarray, dict[str, Any], list[str]]:
    """Fits offsets on half of the pairs that the judge is asked about, and compares on the rest.

    Args:
      rows: labelled pairs.
      found: verdicts and probabilities of `judge`.
      empty_K: its offsets.
      seed: draws the halves.

    Returns:
      float32 [6], figures ("kappa" and share "right" by calibration), and lines to print.

    Raises:
      ValueError: the judge is asked about fewer than 20 pairs.
    """
    names = [name.replace(" ", "_") for name in LABELS]
    want = audit_pairs.accepted(rows, JUDGE)
    accepted_RK = np.array([[name in row for name in names] for row in want])
    with np.errstate(divide="ignore"):
        logp_RK = np.log(found.probability) - empty_K
    # Stated verdicts exclude all others.
    asked = np.isfinite(logp_RK).all(axis=1) & accepted_RK.any(axis=1)
    order = np.random.default_rng(seed).permutation(np.flatnonzero(asked))
    if len(order) < 20:
        raise ValueError(f"the judge is asked about {len(order)} pairs; give at least 20")
    train, test = order[: len(order) // 2], np.sort(order[len(order) // 2 :])
    offset_K = calibration.fit(logp_RK[train], accepted_RK[train])
    lines, figures = [f"{len(train)} pairs fit, {len(test)} judge"], {"pairs": len(test)}
    for kind, added_K in (("none", 0), (calibration.CONTENT_FREE, empty_K), ("fitted", offset_K)):
        verdict_R = np.argmax(logp_RK[test] + added_K, axis=1)
        figures[kind] = _agreement(verdict_R, accepted_RK[test])
        lines.append(f"{kind:14} " + ", ".join(f"{k} {v:.3f}" for k, v in figures[kind].items()))
    return offset_K, figures, lines


def _agreement(category_R: np.ndarray, accepted_RK: np.ndarray) -> dict[str, float]:
    """Returns kappa and share of right verdicts; the first accepted one is the reference of wrong
    ones, as in `audit_pairs.compare`."""
    right_R = accepted_RK[np.arange(len(category_R)), category_R]
    reference_R = np.where(right_R, category_R, np.argmax(accepted_RK, axis=1))
    found = audit_pairs.agreement(reference_R, category_R)
    return {"kappa": found["kappa"] or 0.0, "right": found["accuracy"]}


def main(argv: Sequence[str]) -> None:
    given = flags.FLAGS
    if len(argv) > 1 or given.config is None or not given.out:
        raise app.UsageError("give --config=FILE and --out=FILE.json, and flags only")
    rows = audit_pairs.read_pairs(given.pairs)
    offset_K, figures, lines = measure(rows, *judge(given.config, rows), given.seed)
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
