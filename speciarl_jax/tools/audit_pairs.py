"""Labelled pairs of a true label and an answer, and how verdicts agree with them."""

import csv
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from speciarl_jax import verifiers
from speciarl_jax.verifiers import parsing
from speciarl_jax.verifiers.category import Category

SHIPPED = pathlib.Path(verifiers.__file__).parent / "audit_pairs"
NAMES = tuple(c.name.lower() for c in Category)
TAXONOMY, JUDGE, ASK = "taxonomy", "judge", "ask"
# Columns with the verdicts that are right, in the order in which they are looked for.
LABELS = ("accepted", "category")

Row = dict[str, str]


class Verdicts(NamedTuple):
    """Verdicts of one verifier on R pairs.

    Attributes:
      category: int `Category` [R].
      valid: bool [R], a verdict exists.
      probability: float [R, 6] of the six verdicts, or None where the verifier has none.
      reason: R texts, why a pair has its verdict, or None.
    """

    category: np.ndarray
    valid: np.ndarray
    probability: np.ndarray | None = None
    reason: Sequence[str] | None = None

    def name(self, i: int) -> str:
        """Returns the verdict on pair `i` in lower case, "unverified" where there is none."""
        return NAMES[self.category[i] - min(Category)] if self.valid[i] else "unverified"


def read_pairs(name_or_path: str, *, labelled: bool = True) -> list[Row]:
    """Reads the cells of pairs that ship (`gold`, `adversarial`), or of a CSV file.

    Args:
      name_or_path: name of pairs, or path of a file.
      labelled: whether the right verdicts must be there.

    Raises:
      ValueError: there is no such file, a column is missing, or a category is unknown; names the
        row.
    """
    shipped = SHIPPED / f"{name_or_path}.csv"
    path = shipped if shipped.exists() else pathlib.Path(name_or_path)
    if not path.is_file():
        names = sorted(p.stem for p in SHIPPED.glob("*.csv"))
        raise ValueError(f"there are no pairs {name_or_path!r}; choose one of {names}, or a file")
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file, restval="")
        columns, rows = set(reader.fieldnames or ()), list(reader)
    said, outcomes = columns & {"prediction", "response"}, columns & {*LABELS, JUDGE, TAXONOMY}
    if "truth" not in columns or len(said) != 1 or (labelled and not outcomes) or not rows:
        raise ValueError(
            f"{path} has {len(rows)} rows with the columns {sorted(columns)}; it needs truth, "
            f"{'category, ' if labelled else ''}and either prediction or response"
        )
    for number, row in enumerate(rows, 1):
        for column in outcomes:
            if not set(_verdicts(row[column])) <= {*NAMES, ASK}:
                raise ValueError(
                    f"{path}, row {number}: {column} is {row[column]!r}; choose one of {NAMES}, or "
                    "several with semicolons between them"
                )
    return rows


def _verdicts(cell: str) -> tuple[str, ...]:
    return tuple(name.strip().lower().replace(" ", "_") for name in cell.split(";"))


def response_of(row: Row, tags: str) -> str:
    """Returns the whole response of a row, tags included."""
    thought = f"{parsing.THINK_OPEN}{parsing.THINK_CLOSE}" if tags == "think" else ""
    if "response" in row:
        return thought + row["response"]
    return f"{thought}{parsing.ANSWER_OPEN}{row['prediction']}{parsing.ANSWER_CLOSE}"


def accepted(rows: Sequence[Row], name: str) -> list[tuple[str, ...]]:
    """Returns the verdicts that each row accepts from a verifier.

    A column named like the verifier comes first, then `judge` for all but the taxonomy, then
    `LABELS`.

    Raises:
      ValueError: there is none of these columns.
    """
    columns = (name, *([] if name == TAXONOMY else [JUDGE]), *LABELS)
    column = next((c for c in columns if c in rows[0]), None)
    if column is None:
        raise ValueError(f"the pairs state no outcome for {name}: no column category or {name}")
    return [_verdicts(row[column]) for row in rows]


def compare(rows: Sequence[Row], name: str, found: Verdicts) -> tuple[dict[str, Any], list[str]]:
    """Compares the verdicts of a verifier with those that the rows accept.

    A row that accepts several verdicts has the given one, or else its first one, as reference. Rows
    that say "ask" are left to a judge, and count as neither right nor wrong.

    Returns:
      Figures for `audit.json`, and lines to print. "right" is [right, all] pairs whose verdict is
      stated, in all and of each value of a column `dataset`; pairs without a verdict are not right.
    """
    want = accepted(rows, name)
    asked = [i for i, w in enumerate(want) if ASK in w]
    stated = [i for i, w in enumerate(want) if ASK not in w]
    taken = [i for i in stated if found.valid[i]]
    differ = [i for i in taken if found.name(i) not in want[i]]
    lines = [f"\n== {name} against the labels =="]
    figures: dict[str, Any] = {"pairs": len(rows), "unverified": int((~found.valid).sum())}
    if taken:
        right = set(taken) - set(differ)
        reference = [found.name(i) if i in right else want[i][0] for i in taken]
        codes = np.array([Category[name.upper()] for name in reference])
        result = agreement(codes, found.category[taken])
        figures |= result | {"disagreements": len(differ)}
        figures["right"] = {"all": [len(right), len(stated)]}
        for i in stated if "dataset" in rows[0] else ():
            count = figures["right"].setdefault(rows[i]["dataset"], [0, 0])
            count[0], count[1] = count[0] + (i in right), count[1] + 1
        lines += [table(result, "labels", name), f"{len(differ)} disagreements"]
        lines += ["  " + describe(rows[i], found, i, want[i]) for i in differ]
        lines += [f"right, {k}: {n} of {m} ({n / m:.1%})" for k, (n, m) in figures["right"].items()]
    if asked:
        lines.append(f"{len(asked)} pairs are for the judge to decide")
        lines += ["  " + describe(rows[i], found, i, want[i]) for i in asked]
    if figures["unverified"]:
        lines.append(f"{figures['unverified']} pairs have no verdict")
    return figures, lines


def describe(row: Row, found: Verdicts, i: int, want: Sequence[str] = ()) -> str:
    """Writes the verdict on pair `i`: beside what is accepted, and why, as far as that is known."""
    said = row.get("prediction", row.get("response", ""))
    said = said if len(said) <= 60 else f"{said[:60]}..."
    label = f"{' or '.join(want)}, " if want else ""
    sure = "" if found.probability is None else f" (p {found.probability[i].max():.2f})"
    why = f" ({found.reason[i]})" if found.reason else ""
    kind = f" [{row['kind']}]" if row.get("kind") else ""
    return f"{row['truth']!r} <- {said!r}: {label}verdict {found.name(i)}{sure}{why}{kind}"


def agreement(reference: np.ndarray, other: np.ndarray) -> dict[str, Any]:
    """Compares two series of verdicts on the same pairs.

    Args:
      reference: int `Category` [R].
      other: int `Category` [R].

    Returns:
      "accuracy", share of equal verdicts; "kappa", agreement beyond chance (Cohen, Educ. Psychol.
      Meas. 20, 1960), None if the agreement expected by chance is 1; "precision", verdict -> share
      that the reference shares; "recall", category of the reference -> share that is found;
      "matrix", 7 x 7 counts in the order of `NAMES`, rows by the reference.

    Raises:
      ValueError: the lengths differ, or are 0.
    """
    reference, other = np.asarray(reference), np.asarray(other)
    if reference.shape != other.shape or not reference.size:
        raise ValueError(
            f"{reference.size} verdicts cannot be compared with {other.size}; both must judge the "
            "same pairs, at least one"
        )
    matrix = np.zeros((len(NAMES),) * 2, int)
    np.add.at(matrix, (reference - min(Category), other - min(Category)), 1)
    total, equal = matrix.sum(), np.diag(matrix)
    accuracy, chance = equal.sum() / total, (matrix.sum(0) @ matrix.sum(1)) / total**2

    def shares(totals):
        return {n: float(e / t) for n, e, t in zip(NAMES, equal, totals, strict=True) if t}

    return {
        "accuracy": float(accuracy),
        "kappa": float((accuracy - chance) / (1 - chance)) if chance < 1 else None,
        "precision": shares(matrix.sum(0)),
        "recall": shares(matrix.sum(1)),
        "matrix": matrix.tolist(),
    }


def table(found: Mapping[str, Any], rows: str, columns: str) -> str:
    """Writes an `agreement` as text, without categories that nobody gave."""
    matrix, none = np.array(found["matrix"]), float("nan")
    used = [i for i in range(len(NAMES)) if matrix[i].any() or matrix[:, i].any()]
    short = [NAMES[i].replace("_", " ") for i in used]
    width = max(map(len, [*short, rows]))
    lines = [f"rows: {rows}, columns: {columns}"]
    lines.append(" " * width + "".join(f"  {name:>13}" for name in [*short, "recall"]))
    for i, name in zip(used, short, strict=True):
        cells = "".join(f"  {count:13d}" for count in matrix[i, used])
        lines.append(f"{name:{width}}{cells}  {found['recall'].get(NAMES[i], none):13.3f}")
    cells = "".join(f"  {found['precision'].get(NAMES[i], none):13.3f}" for i in used)
    kappa = none if found["kappa"] is None else found["kappa"]
    equal = f"{matrix.sum()} pairs, equal {found['accuracy']:.3f}, Cohen's kappa {kappa:.3f}"
    return "\n".join([*lines, f"{'precision':{width}}{cells}", equal])


def write(folder: pathlib.Path, figures: Mapping[str, Any], rows: Sequence[Row]) -> None:
    """Writes `audit.json`, and `verdicts.csv` with these rows."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "audit.json").write_text(json.dumps(figures, indent=2) + "\n")
    with (folder / "verdicts.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)
