"""`report.html`: one page with everything, which needs no network.

Figures are SVG in the page, images are data URIs, and the browser of images reads JSON that
lies in a script tag. The templates escape whatever a model or a data set says.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jinja2
from markupsafe import Markup

from speciarl_jax.evaluation import (
    constant_answer,
    metrics,
    outcome,
    pairs,
    remarks,
    unknown_answers,
)
from speciarl_jax.evaluation.pairs import run_key
from speciarl_jax.evaluation.report import (
    breakdown,
    curves,
    figures,
    made_with,
    page_data,
    palette,
    svg,
    templates,
    why,
)
from speciarl_jax.evaluation.report.folder import Folder
from speciarl_jax.evaluation.report.page_data import visible
from speciarl_jax.verifiers.taxonomy import Taxonomy

Run = Mapping[str, Any]
# Where data sets or prompts do not agree, or no paired test is known.
_NO_HEADLINE = "How specific, and how right"


def _environment() -> jinja2.Environment:
    found = templates.environment(visible)
    modules = {"figures": figures, "pairs": pairs, "palette": palette, "outcome": outcome}
    found.globals |= modules | {"inline": svg.inline, "visible": visible}
    found.filters["evidence"] = _evidence
    return found


def _evidence(test: Mapping[str, Any]) -> str:
    """Writes `outcome.evidence` with true minus signs, and no line break inside of p."""
    text = outcome.evidence(test).replace("-", "−")
    for sign in "=<":
        text = text.replace(f"p {sign} ", f"p\u00a0{sign}\u00a0")
    return text


def render(
    folder: Folder,
    thumbnails: Mapping[tuple[str, int], str] | None = None,
    trees: Mapping[str, Taxonomy] | None = None,
    domains: Mapping[str, Mapping[str, str]] | None = None,
) -> str:
    """Returns the page as text.

    Args:
      thumbnails: (data, image_id) -> data URI of the evaluation images; the others have a
        placeholder.
      trees: data set -> label tree that its answers were judged by, for the reasons of verdicts.
      domains: data set -> label id -> its group in the label tree.
    """
    runs = sorted_runs(folder.metrics["runs"])
    keys = [run_key(run) for run in runs]
    names, places = page_data.names_of(keys), page_data.places_of(keys)
    reward = page_data.reward_of(folder.configs)
    reasons = why.Why(folder, trees or {})
    entries = page_data.images(folder.predictions, places, thumbnails or {}, reward, reasons.number)
    made = made_with.facts(folder)
    found = folder.metrics | {"runs": runs}
    data = _data(folder, keys, entries, reasons.texts)
    content = {
        "folder": folder,
        "runs": runs,
        "policies": dict(zip(names, runs, strict=True)),
        "measures": list(figures.MEASURES.values()),
        "share_names": list(templates.SHARES),
        "headline": outcome.headline(found) or (_NO_HEADLINE if runs else "A training run"),
        "outcomes": outcome.outcomes(found),
        "tests": _tests(folder.metrics["comparisons"]),
        "image_sets": remarks.image_sets(folder.metrics),
        "breakdowns": _breakdowns(folder, runs, domains or {}),
        "shifts": _shifts(runs, places, entries),
        "compared": _compared(folder.metrics["comparisons"]),
        "refusals": remarks.refusals(folder.metrics["not_compared"]),
        "warned": remarks.warned(folder.history),
        "training": curves.training({visible(folder.name): folder.history}),
        "constant": constant_answer.scores(runs),
        "unknown": _unknown(runs),
        "weights": _weights(folder.metrics),
        "made_with": made_with.described(made, dict(zip(keys, names, strict=True))),
        "labels": _labels(runs),
        "chosen": [places[run_key(run)] for run in pairs.opening(runs)] if runs else [0, 0],
        "data": data,
        "css": Markup((templates.ASSETS / "page.css").read_text()),
        "js": Markup((templates.ASSETS / "page.js").read_text()),
    }
    sections = [
        ("results", "Results", runs),
        ("shift", "Categories", runs),
        ("best-of", "Best of n", any(run.get("best_of") for run in runs)),
        ("calibration", "Calibration", any(r["images"] for r in _rows(runs, "calibration"))),
        ("choices", "Names of predict", _rows(runs, "choices")),
        ("training", "Training", folder.history),
        ("samples", "Samples of training", data["rollouts"]),
        ("groups", "Difficulty and domain", content["breakdowns"]),
        ("classes", "Classes", content["labels"]),
        ("images", "Images", True),
    ]
    content["sections"] = [(key, title) for key, title, present in sections if present]
    return _environment().get_template("page.html.jinja").render(content)


def _data(
    folder: Folder,
    keys: Sequence[tuple[str, str, str]],
    entries: Sequence[Mapping[str, Any]],
    reasons: Sequence[str],
) -> dict[str, Any]:
    """Makes what the page's script reads."""
    asked = dict.fromkeys((policy, "", prompt) for policy, _, prompt in keys)
    return {
        # The browser of images shows the answers about an image's own data set.
        "runs": page_data.names_of(list(asked)),
        "sets": sorted({entry["data"] for entry in entries}),
        "categories": {
            name: {"mark": look.mark, "name": palette.name(name), "rank": palette.RANK.get(name)}
            for name, look in palette.CATEGORIES.items()
        },
        "images": entries,
        "reasons": list(map(visible, reasons)),
        "rollouts": page_data.rollouts(folder.samples),
    }


def sorted_runs(runs: Sequence[Run]) -> list[Run]:
    """Sorts runs by data set and prompt, the base policy first; otherwise keeps their order."""
    sets = list(dict.fromkeys((run["data"], run["prompt"]) for run in runs))
    return sorted(
        runs, key=lambda run: (sets.index((run["data"], run["prompt"])), run["policy"] != "base")
    )


def _rows(runs: Sequence[Run], key: str) -> list[Mapping[str, Any]]:
    return [row for run in runs for row in run.get(key) or ()]


def _tests(found: Sequence[Mapping[str, Any]]) -> dict[tuple, Mapping[str, Any]]:
    """Finds the differences of a table by (key of the one run, key of the other)."""
    return {(run_key(one["a"]), run_key(one["b"])): one["differences"] for one in found}


def _breakdowns(folder: Folder, runs: Sequence[Run], domains: Mapping[str, Mapping[str, str]]):
    """Lists (data, prompt, tables by difficulty and domain), where there are any."""
    found = [
        (data, prompt, breakdown.tables(folder, data, prompt, domains.get(data)))
        for data, prompt in dict.fromkeys((run["data"], run["prompt"]) for run in runs)
    ]
    return [one for one in found if one[2]]


def _shifts(
    runs: Sequence[Run],
    places: Mapping[tuple[str, str, str], int],
    entries: Sequence[Mapping[str, Any]],
) -> list[dict[str, Any]]:
    """Counts what became of each category from a base to the last run that has this base."""
    found, rank = pairs.last_of_each(runs), palette.RANK
    titles = page_data.names_of([run_key(run) for _, run in found])
    rows = []
    for (base, run), title in zip(found, titles, strict=True):
        own = [entry for entry in entries if entry["data"] == run["data"]]
        counts = page_data.changes(own, *(places[run_key(one)] for one in (base, run)))
        moves = [(rank[b] - rank[a], n) for (a, b), n in counts.items() if {a, b} <= rank.keys()]
        row = {"title": title, "base": base, "run": run, "counts": counts}
        row["used"] = [c for c in palette.ORDER if any(c in pair for pair in counts)]
        row["better"] = sum(n for by, n in moves if by > 0)
        row["worse"] = sum(n for by, n in moves if by < 0)
        rows.append(row | {"same": sum(n for by, n in moves if by == 0)})
    return rows


def _compared(
    found: Sequence[Mapping[str, Any]],
) -> list[tuple[str, int, list[tuple[str, Mapping[str, Any]]]]]:
    """Lists (data set, images, [(names of both runs, their differences)]) of the comparisons."""
    tables = []
    for data, rows in remarks.by_data(found).items():
        keys = list(dict.fromkeys(run_key(one[side]) for one in rows for side in "ab"))
        names = dict(zip(keys, page_data.names_of(keys), strict=True))
        sides = [[names[run_key(one[side])] for side in "ab"] for one in rows]
        lines = [
            ("\u00a0→ ".join(both), one["differences"])
            for both, one in zip(sides, rows, strict=True)
        ]
        tables.append((data, rows[0]["images"], lines))
    return tables


def _weights(found: Mapping[str, Any]) -> str:
    """Says which weights `metrics.json` was made with; "" where it does not tell."""
    return metrics.describe_weights(found["weights"]) if "weights" in found else ""


def _unknown(runs: Sequence[Run]) -> list[str]:
    """Says of each run how many answers its label tree has no name for."""
    names = page_data.names_of([run_key(run) for run in runs])
    return [
        f"{name}: {said}"
        for name, run in zip(names, runs, strict=True)
        if (said := unknown_answers.describe(run))
    ]


def _labels(runs: Sequence[Run]) -> dict[str, list[Mapping[str, float] | None]]:
    """Maps each class to its scores of each run, None where a run was not asked about it."""
    by_class = [run.get("by_class") or {} for run in runs]
    labels = sorted({label for found in by_class for label in found})
    return {label: [found.get(label) for found in by_class] for label in labels}
