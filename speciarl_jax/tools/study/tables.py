"""Tables of a study: for the terminal and table.md, and for table.csv."""

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any

from speciarl_jax.evaluation import metrics
from speciarl_jax.evaluation.report.figures import MEASURES

Set = Mapping[str, Any]  # an entry of "sets" in `study.json`


def seeds_of(row: Mapping[str, Any]) -> str:
    """Says how many seeds a row has: "5", "3 of 5", or "-" where nothing is trained."""
    if not row["seeds"]:
        return "-"
    short = row["runs"] < row["wanted"]
    return f"n={row['runs']} of {row['wanted']}" if short else str(row["runs"])


def _interval(found: Mapping[str, Any] | None, sign: str = "") -> str:
    if found is None:
        return ""
    low, high = found["interval"]
    return f"{found['value']:{sign}.3f} ({low:{sign}.3f} to {high:{sign}.3f})"


def cells(found: Set, reference: str | None) -> list[list[str]]:
    """Writes the cells of the table of an image set, the head first.

    A difference whose interval excludes zero has a star.
    """
    tested = any(row["against_reference"] for row in found["rows"])
    closed = any(row["closed"] for row in found["rows"])
    head = ["method", "seeds", *MEASURES.values()]
    if tested:
        head += [f"{MEASURES[m]} - {reference}" for m in ("correctness", "specificity", "hm")]
    rows = [head + (["distance closed"] if closed else [])]
    for row in found["rows"]:
        line = [row["name"], seeds_of(row)]
        line += [_interval(row["scores"][m]) for m in metrics.MEASURES]
        if tested:
            test = row["against_reference"]
            for measure in metrics.MEASURES:
                one = test and test["differences"][measure]
                line.append(_interval(one, "+") + ("*" if one and one["excludes_zero"] else ""))
        if closed:
            line.append(_percent(row["closed"]))
        rows.append(line)
    return rows


def _pairs(found: Set) -> list[list[str]]:
    """Writes the cells of the table of all differences of HM; none below three methods."""
    rows = [row for row in found["rows"] if row.get("hm_against")]
    if len(rows) < 3:
        return []
    names = [row["name"] for row in rows]
    lines = [["", *names]]
    for row in rows:
        tests = [row["hm_against"].get(other) for other in names]
        stars = ["*" if one and one["excludes_zero"] else "" for one in tests]
        cells = [_interval(one, "+") + star for one, star in zip(tests, stars, strict=True)]
        lines.append([row["name"], *cells])
    return lines


def _percent(found: Mapping[str, Any] | None) -> str:
    if found is None:
        return ""
    low, high = found["interval"]
    return f"{100 * found['value']:.0f}% ({100 * low:.0f} to {100 * high:.0f})"


def grid(rows: Sequence[Sequence[str]]) -> str:
    """Writes rows as a Markdown table whose columns are aligned, the head first."""
    rows = [[cell.replace("|", "\\|") for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "| " + " | ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) + " |"
        for row in rows
    ]
    rule = "|" + "|".join("-" * (width + 2) for width in widths) + "|"
    return "\n".join([lines[0], rule, *lines[1:]])


def short(found: Mapping[str, Any]) -> str:
    """Writes the tables for a terminal: measures, and the difference of HM."""
    parts = []
    for name, one in found["sets"].items():
        rows = cells(one, found["reference"])
        kept = [i for i, head in enumerate(rows[0]) if " - " not in head or head.startswith("HM")]
        parts.append(f"{_title(name, one)}\n" + grid([[row[i] for i in kept] for row in rows]))
    return "\n\n".join([*parts, *_remarks(found)])


def markdown(found: Mapping[str, Any]) -> str:
    """Writes `table.md`."""
    parts = ["# Results"]
    for name, one in found["sets"].items():
        parts += [f"## {_title(name, one)}", grid(cells(one, found["reference"]))]
        if pairs := _pairs(one):
            parts += ["HM, the method of the row minus that of the column:", grid(pairs)]
    parts.append(found["method"])
    if found["weights"]:
        parts.append(metrics.describe_weights(found["weights"]))
    parts += _remarks(found)
    for name, choice in found["search"].items():
        parts += [f"## Search: {name}", _trials(choice), f"Chosen by {choice['rule']}: trial "
                  f"{choice['trial']}."]  # fmt: skip
    return "\n\n".join(parts) + "\n"


def _title(name: str, one: Set) -> str:
    return f"{name}: {one['images']:,} images"


def _remarks(found: Mapping[str, Any]) -> list[str]:
    """Says what stars and percentages mean, and what is missing."""
    said, sets = [], found["sets"].values()
    rows = [row for one in sets for row in one["rows"]]
    if any(row["against_reference"] for row in rows):
        said.append("*: the interval of the difference excludes zero.")
    if any(row["closed"] for row in rows):
        said.append(
            f"Distance closed: share of the way in HM from {found['base']} (0%) to "
            f"{found['best']} (100%)."
        )
    said += [_frontier(name, one, found) for name, one in found["sets"].items() if one["rows"]]
    if few := sorted({row["name"] for row in rows if row["runs"] < row["wanted"]}):
        said.append(f"Seeds are missing of {', '.join(few)}.")
    if waiting := found.get("waiting_for_search"):
        said.append(f"The setting is not chosen yet of {', '.join(waiting)}.")
    there = {row["name"] for row in rows}
    if absent := [
        n for n in dict.fromkeys(r["row"] for r in found.get("runs", ())) if n not in there
    ]:
        said.append(f"No finished run yet of {', '.join(absent)}.")
    return list(filter(None, said))


def _frontier(name: str, one: Set, found: Mapping[str, Any]) -> str:
    """Says what the samples of the base agree on; "" where that is not known."""
    if not one.get("frontier"):
        return ""
    best = max(one["frontier"], key=lambda point: point["hm"])
    scores = " and ".join(f"{best[measure]:.3f}" for measure in ("correctness", "specificity"))
    said = (
        f"{name}: the names that samples of {found['base']} agree on, without training, reach an "
        f"HM of at most {best['hm']:.3f} ({scores}, at a confidence of {best['confidence']} that "
        "was chosen on these images)"
    )
    start, end = (
        [row["scores"]["hm"]["value"] for row in one["rows"] if row["name"] == found[which]]
        for which in ("base", "best")
    )
    if start and end and end > start:
        said += f", {100 * (best['hm'] - start[0]) / (end[0] - start[0]):.0f}% of the distance"
    return said + "."


def _trials(choice: Mapping[str, Any]) -> str:
    heads = list(choice["trials"][0]["overrides"])
    rows = [["trial", *heads, *MEASURES.values(), "allowed"]]
    for trial in choice["trials"]:
        scores = [f"{trial[m]:.3f}" if m in trial else trial["status"] for m in MEASURES]
        values = [str(value) for value in trial["overrides"].values()]
        rows.append([str(trial["trial"]), *values, *scores, "yes" if trial["allowed"] else "no"])
    return grid(rows)


def to_csv(found: Mapping[str, Any]) -> str:
    """Writes `table.csv`: a line for each image set and row."""
    heads = ["set", "row", "seeds", "seeds_wanted", "images"]
    for measure in metrics.MEASURES:
        heads += [measure, f"{measure}_low", f"{measure}_high"]
    for measure in metrics.MEASURES:
        name = f"{measure}_minus_reference"
        heads += [name, f"{name}_low", f"{name}_high", f"{name}_p", f"{name}_excludes_zero"]
    heads += ["closed", "closed_low", "closed_high"]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(heads)
    for name, one in found["sets"].items():
        for row in one["rows"]:
            line = [name, row["name"], len(row["seeds"]), row["wanted"] if row["seeds"] else 0]
            line.append(one["images"])
            for measure in metrics.MEASURES:
                line += [row["scores"][measure]["value"], *row["scores"][measure]["interval"]]
            for measure in metrics.MEASURES:
                test = (row["against_reference"] or {}).get("differences", {}).get(measure)
                line += (
                    [test["value"], *test["interval"], test["p"], test["excludes_zero"]]
                    if test
                    else [""] * 5
                )
            closed = row["closed"]
            line += [closed["value"], *closed["interval"]] if closed else [""] * 3
            writer.writerow(line)
    return text.getvalue()
