"""Compares evaluations: a table with intervals, and paired tests on the same images.

    python -m speciarl_jax.tools.compare runs/quickstart runs/other --out=runs/comparison

The arguments are folders that `speciarl_jax.train` or `speciarl_jax.evaluate` wrote to. The first
is the reference: a policy of another run is compared with its namesake in the first run, or, if
there is none, with all policies there. --policies selects policies. Writes `comparison.json`,
`comparison.md` and figures.

    python -m speciarl_jax.tools.compare runs/binary/seed_* runs/speciarl/seed_*
    python -m speciarl_jax.tools.compare binary=runs/binary_* speciarl=runs/speciarl_*

Folders seed_0, seed_1, ... of one folder, or all that fit the pattern of a NAME, are seeds of one
method: their scores are averaged, and intervals and tests are over seeds and images
(docs/results.md). --nogroup_seeds takes each folder for itself.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from absl import app, flags
from etils import epath

from speciarl_jax.evaluation import (
    bootstrap,
    comparisons,
    metrics,
    predictions,
    remarks,
    results,
)
from speciarl_jax.evaluation.comparisons import Side
from speciarl_jax.evaluation.pairs import run_key
from speciarl_jax.evaluation.predictions import GREEDY, Part
from speciarl_jax.evaluation.report import figures, markdown, templates
from speciarl_jax.evaluation.report.folder import read_history
from speciarl_jax.runtime import exit_codes
from speciarl_jax.tools.study import figure, groups, tables


def read_run(
    folder: epath.Path, wanted: Sequence[str] = ()
) -> tuple[dict[Part, list[dict[str, Any]]], dict[str, Any]]:
    """Reads the parts of a folder, and their provenance.

    Raises:
      ValueError: there are no predictions, or none of the policies that are wanted.
    """
    if not (folder / predictions.LINES).is_file():
        raise ValueError(
            f"{folder} holds no {predictions.LINES}; give folders that python -m "
            "speciarl_jax.train or speciarl_jax.evaluate wrote to"
        )
    parts = {
        part: lines
        for part, lines in predictions.read(folder).items()
        if not wanted or part.policy in wanted
    }
    if not any(predictions.verified(lines) for lines in _greedy(parts).values()):
        raise ValueError(
            f"{folder} holds no greedy answers with verdicts"
            + (f" of the policies {list(wanted)}" if wanted else "")
        )
    return parts, predictions.read_provenance(folder)


def _greedy(parts: Mapping[Part, Any]) -> dict[Part, Any]:
    return {part: lines for part, lines in parts.items() if part.decoding == GREEDY}


def read_weights(folders: Sequence[epath.Path]) -> dict[str, float]:
    """Reads the weights of specificity that all folders were scored with.

    Raises:
      ValueError: an evaluation has not ended, or the weights differ.
    """
    found = {}
    for folder in folders:
        path = folder / results.FILE
        if not path.is_file():
            raise ValueError(f"{path} is missing: let the evaluation end (start it again)")
        found[str(folder)] = metrics.numbers_of(json.loads(path.read_text())["weights"])
    first, *others = found.values()
    if any(weights != first for weights in others):
        raise ValueError(
            f"the runs weigh specificity differently ({found}); evaluate them with the same "
            "config.evaluation.weights"
        )
    return first


def compare(
    runs: Mapping[str, tuple[Mapping[Part, Any], Mapping[str, Any]]], weights: Mapping[str, float]
) -> dict[str, Any]:
    """Computes the figures of all runs, and paired tests against the first.

    Args:
      runs: name -> parts and provenance (`read_run`); the first is the reference.
      weights: of correct answers (`metrics.score`).

    Returns:
      {"weights": {...}, "runs": [...], "comparisons": [...], "not_compared": [...]} as in
      `metrics.json`, each run and side with its folder as "run".

    Raises:
      ValueError: two runs have other images, or another verifier or labels, under one name of a
        data set.
    """
    alone = {
        name: results.of_parts(parts, weights, provenances=known)
        for name, (parts, known) in runs.items()
    }
    sides = {
        name: comparisons.sides_of(_greedy(parts), known, run=name)
        for name, (parts, known) in runs.items()
    }
    (first, reference), *others = sides.items()
    pairs, not_compared = comparisons.of_runs(reference)
    for b in (side for _, theirs in others for side in theirs):
        same = [a for a in reference if a.name["data"] == b.name["data"]]
        for a in [a for a in same if run_key(a.name) == run_key(b.name)] or same:
            _check_same(a, b)
            pairs.append((a, b))
    return {
        "weights": alone[first]["weights"],
        "runs": [{"run": name} | row for name, found in alone.items() for row in found["runs"]],
        "comparisons": comparisons.of_pairs(pairs, weights),
        "not_compared": not_compared,
    }


def _check_same(a: Side, b: Side) -> None:
    both = " and ".join(f"{one.name['run']} ({'/'.join(run_key(one.name))})" for one in (a, b))
    for keys, what in (
        (comparisons.IMAGES, "asked about other images"),
        (comparisons.VERDICTS, "judged by another verifier, or other names of the labels"),
    ):
        for key, (one, other) in comparisons.unlike(a.provenance, b.provenance, keys).items():
            raise ValueError(
                f"{both} were {what}: {key} is {one!r} in one and {other!r} in the other; evaluate "
                "both on the same, or leave one out with --policies"
            )


def to_markdown(found: Mapping[str, Any]) -> str:
    """Writes tables: figures and differences with 95% intervals, and the best of n samples."""
    heads = [*_MEASURES, *templates.SHARES]
    lines = ["# Comparison", "", "| run | images | " + " | ".join(heads) + " |"]
    lines.append("|---|---:|" + "---|" * len(heads))
    for row in found["runs"]:
        cells = [
            f"{row['score'][m]:.3f} ({row['intervals'][m][0]:.3f} to {row['intervals'][m][1]:.3f})"
            for m in bootstrap.MEASURES
        ]
        shares = templates.shares(row["score"]["histogram"], row["unverified"])
        head = [_name(row, found), str(row["images"])]
        lines.append("| " + " | ".join([*head, *cells, *shares]) + " |")
    if found["comparisons"]:
        lines += ["", "| b - a, paired | images | " + " | ".join(_MEASURES) + " |"]
        lines.append("|---|---:|" + "---|" * 3)
    for row in found["comparisons"]:
        cells = [markdown.difference(row["differences"].get(m)) for m in bootstrap.MEASURES]
        name = f"{_name(row['b'], found)} - {_name(row['a'], found)}"
        lines.append("| " + " | ".join([name, str(row["images"]), *cells]) + " |")
    for best_of in markdown.best_of({_name(row, found): row for row in found["runs"]}):
        lines += ["", best_of]
    lines += ["", "95% percentile bootstrap over images; p two-sided, not corrected for the"]
    lines.append("number of comparisons.")
    lines += ["", metrics.describe_weights(found["weights"])]
    if said := remarks.about(found):
        lines += ["", *(f"- {one}" for one in said)]
    return "\n".join(lines) + "\n"


_MEASURES = tuple(figures.MEASURES.values())


def _name(row: Mapping[str, Any], found: Mapping[str, Any]) -> str:
    """Names a run by folder and policy, and by data and prompt where these differ."""
    parts = [row["run"], row["policy"]]
    for key in ("data", "prompt"):
        if len({other[key] for other in found["runs"]}) > 1:
            parts.append(row[key])
    return ", ".join(parts).replace("|", "\\|")


def write(
    out: epath.Path, found: Mapping[str, Any], folders: Sequence[epath.Path]
) -> list[epath.Path]:
    """Writes `comparison.json`, `comparison.md` and figures to `out`; returns their paths."""
    out.mkdir(parents=True, exist_ok=True)
    numbers, text = out / "comparison.json", out / "comparison.md"
    numbers.write_text(json.dumps(found, indent=1) + "\n")
    text.write_text(to_markdown(found))
    named = {_name(row, found): row for row in found["runs"]}
    curves = {str(folder): read_history(folder) for folder in folders}
    kept = {name: rows for name, rows in curves.items() if rows}
    return [numbers, text, *figures.write_png(out, named, kept)]


def write_groups(out: epath.Path, found: Mapping[str, Any]) -> list[epath.Path]:
    """Writes the files of groups of seeds to `out`; returns their paths."""
    out.mkdir(parents=True, exist_ok=True)
    files = {
        "comparison.json": (json.dumps(found, indent=1) + "\n").encode(),
        "comparison.md": tables.markdown(found).encode(),
        "comparison.csv": tables.to_csv(found).encode(),
        **figure.files(found),
    }
    for name, content in files.items():
        (out / name).write_bytes(content)
    return [out / name for name in files]


def main(argv: Sequence[str]) -> None:
    given = flags.FLAGS
    if not argv[1:]:
        raise app.UsageError("give the folders of evaluations")
    chosen = {name: [epath.Path(name)] for name in argv[1:]}
    if given.group_seeds:
        chosen = groups.find(argv[1:])
    folders = [folder for group in chosen.values() for folder in group]
    if len({folder.resolve() for folder in folders}) < len(argv[1:]):
        raise app.UsageError("a folder was given twice")
    runs = {folder: read_run(folder, given.policies) for folder in folders}
    weights, out = read_weights(folders), epath.Path(given.out)
    if any(len(group) > 1 for group in chosen.values()):
        found = groups.compare(chosen, runs, weights)
        print(tables.markdown(found))
        written = write_groups(out, found)
    else:
        found = compare({name: runs[group[0]] for name, group in chosen.items()}, weights)
        print(to_markdown(found))
        written = write(out, found, folders)
    for path in written:
        print(path)


if __name__ == "__main__":
    flags.DEFINE_string("out", "runs/comparison", "Folder for the results.")
    flags.DEFINE_list("policies", [], "Only these policies.")
    flags.DEFINE_bool("group_seeds", True, "Take seed_0, seed_1, ... for seeds of one method.")
    exit_codes.run_tool("compare", main)
