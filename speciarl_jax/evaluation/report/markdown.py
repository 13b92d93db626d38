"""`report.md`: tables of scores, what differs between runs, training, and answers that changed."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from speciarl_jax.evaluation import bootstrap, results
from speciarl_jax.evaluation.metrics import Score
from speciarl_jax.evaluation.report import pairs
from speciarl_jax.evaluation.report.folder import Folder, run_key
from speciarl_jax.verifiers.category import Category

# From the best category down, as people read them.
ORDER = [c.name.lower() for c in sorted(Category, reverse=True)]


def table(scores: Mapping[str, Score]) -> str:
    """A Markdown table: one row a policy, with the share of each category in per cent."""
    heads = ["policy", "correctness", "specificity", "HM", *(n.replace("_", " ") for n in ORDER)]
    rows = []
    for name, score in scores.items():
        total = max(sum(score.histogram.values()), 1)
        rows.append(
            [
                name,
                f"{score.correctness:.3f}",
                f"{score.specificity:.3f}",
                f"{score.hm:.3f}",
                *(f"{100 * score.histogram[n] / total:.1f}%" for n in ORDER),
            ]
        )
    widths = [max(len(row[i]) for row in [heads, *rows]) for i in range(len(heads))]

    def line(cells):
        first, *rest = zip(cells, widths, strict=True)
        cells = [first[0].ljust(first[1]), *(cell.rjust(width) for cell, width in rest)]
        return "| " + " | ".join(cells) + " |"

    rule = "|" + "|".join("-" * (width + 1) + (":" if i else "-") for i, width in enumerate(widths))
    return "\n".join([line(heads), rule + "|", *map(line, rows)])


def render(content: Folder) -> str:
    """The text of `report.md`: what was trained, and each data set under each prompt.

    Args:
      content: of a folder of `train` or `evaluate`.
    """
    runs = content.metrics["runs"]
    parts = [f"# SpeciaRL: {escape(content.name)}"]
    summary = content.summary
    if summary.get("steps") is not None and math.isfinite(summary.get("wall_seconds", math.nan)):
        parts.append(
            f"{summary['steps']} steps in {summary['wall_seconds'] / 60:.1f} minutes, evaluation "
            "and compilation included."
        )
    if runs:
        parts.append(
            "Correctness: share of answers that are neither wrong, abstained nor unparsed. "
            "Specificity: mean weight of the correct ones. HM: their harmonic mean."
        )
    for data, prompt in dict.fromkeys(run_key(run)[1:] for run in runs):
        members = [run for run in runs if run_key(run)[1:] == (data, prompt)]
        parts.append(f"## {escape(data)}, prompt {escape(prompt)}")
        parts += _about(content, members)
    if content.history or summary:
        parts += ["## Training", _curve(content.history)]
    return "\n\n".join(parts) + "\n"


def _about(content: Folder, runs: Sequence[Mapping[str, Any]]) -> list[str]:
    """Paragraphs about the runs of one data set and prompt."""
    images = max(run["images"] for run in runs)
    parts = [
        f"{images} evaluation images, greedy answers.",
        table({escape(run["policy"]): results.score_of(run) for run in runs}),
    ]
    missing = [
        f"{escape(run['policy'])} {100 * run['unverified']:.1f}%"
        for run in runs
        if run["unverified"]
    ]
    if missing:
        parts.append(f"Left out, for no judge gave a verdict: {', '.join(missing)} of the images.")
    named = {escape(run["policy"]): run for run in runs}
    parts += [*best_of(named), *_choices(named)]
    parts += _comparisons(content.metrics["comparisons"], runs)
    parts += _not_compared(content.metrics["not_compared"], runs)
    for run in runs:
        base = pairs.base_of(run, runs)
        if base is not None:
            parts.append(f"### Answers that changed from base to {escape(run['policy'])}")
            parts.append(_changes(content.greedy(base), content.greedy(run)))
    return parts


def best_of(runs: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """HM of the best of n samples, a row a run; no table where nothing was sampled.

    Args:
      runs: name, as it stands in the table -> run of `metrics.json`.
    """
    sampled = {name: run["best_of"] for name, run in runs.items() if run["best_of"]}
    if not sampled:
        return []
    counts = sorted({point["n"] for points in sampled.values() for point in points})
    rows = ["| HM of the best of | " + " | ".join(map(str, counts)) + " |"]
    rows.append("|---" + "|---:" * len(counts) + "|")
    for name, points in sampled.items():
        known = {point["n"]: f"{point['hm']:.3f}" for point in points}
        cells = [name, *(known.get(n, "") for n in counts)]
        rows.append("| " + " | ".join(cells) + " |")
    return ["\n".join(rows)]


def _choices(runs: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """What the names of `predict` are worth, a row a policy and confidence."""
    rows = []
    for name, run in runs.items():
        for one in run.get("choices") or ():
            values = [one["named"], *(one[key] for key in ("correctness", "specificity"))]
            cells = ["" if value is None else f"{value:.3f}" for value in values]
            rows.append("| " + " | ".join([name, f"{one['confidence']:.1f}", *cells]) + " |")
    if not rows:
        return []
    heads = "| names of predict | --confidence | images named | correctness | specificity |"
    return ["\n".join([heads, "|---|---:|---:|---:|---:|", *rows])]


def _comparisons(
    found: Sequence[Mapping[str, Any]], runs: Sequence[Mapping[str, Any]]
) -> list[str]:
    """Differences of these runs from the first of their data set, which may have another prompt."""
    keys = {run_key(run) for run in runs}
    rows = []
    for one in found:
        if run_key(one["b"]) not in keys:
            continue
        names = [escape(one[side]["policy"]) for side in "ba"]
        if one["a"]["prompt"] != one["b"]["prompt"]:
            names[1] += f", prompt {escape(one['a']['prompt'])}"
        differences = (one["differences"][name] for name in bootstrap.MEASURES)
        cells = [" - ".join(names), str(one["images"]), *map(difference, differences)]
        rows.append("| " + " | ".join(cells) + " |")
    if not rows:
        return []
    heads = "| difference, paired over images | images | correctness | specificity | HM |"
    note = "95% percentile bootstrap over images; p two-sided, not corrected for their number."
    return ["\n".join([heads, "|---|---:|---|---|---|", *rows]), note]


def _not_compared(
    found: Sequence[Mapping[str, Any]], runs: Sequence[Mapping[str, Any]]
) -> list[str]:
    """Why some of these runs have no difference from the first of their data set."""
    keys = {run_key(run) for run in runs}
    mine = [one for one in found if run_key(one["b"]) in keys]
    return [escape(sentence) for sentence in results.refusals(mine)]


def difference(value: Mapping[str, Any]) -> str:
    """A difference of `bootstrap.paired` with its interval and p."""
    low, high = value["interval"]
    p = f"p = {value['p']:.3f}" if value["p"] >= 0.001 else "p < .001"
    return f"{value['value']:+.3f} ({low:+.3f} to {high:+.3f}), {p}"


_CURVE = {
    "reward": "reward/mean",
    "specific": "verify/specific",
    "less specific": "verify/less_specific",
    "generic": "verify/generic",
    "abstain": "verify/abstain",
    "wrong": "verify/wrong",
    "loss": "update/loss",
    "KL": "update/kl",
    "entropy": "update/entropy",
}


def _curve(history: Sequence[Mapping[str, float]], rows: int = 12) -> str:
    """Means of neighbouring steps, so that a noisy curve can be read."""
    rows_of_training = [row for row in history if "update/loss" in row or "reward/mean" in row]
    if not rows_of_training:
        return "No step was taken."
    size = max(1, -(-len(rows_of_training) // rows))
    lines = ["| steps | " + " | ".join(_CURVE) + " |", "|---" * (len(_CURVE) + 1) + "|"]
    for start in range(0, len(rows_of_training), size):
        part = rows_of_training[start : start + size]
        cells = [f"{part[0]['step']:.0f}-{part[-1]['step']:.0f}"]
        for name in _CURVE.values():
            values = [row[name] for row in part if name in row]
            cells.append(f"{sum(values) / len(values):.3f}" if values else "")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _changes(before: results.Lines, after: results.Lines, each: int = 15) -> str:
    """Images whose verdict rose, and images whose verdict fell."""
    rank = {name: i for i, name in enumerate(reversed(ORDER))}
    moves = [
        (rank[new["categories"][0]] - rank[old["categories"][0]], old, new)
        for old, new in results.paired_lines(before, after)
    ]
    lines = []
    for title, chosen in (
        ("better", [move for move in moves if move[0] > 0]),
        ("worse", [move for move in moves if move[0] < 0]),
    ):
        lines += [f"{len(chosen)} of {len(moves)} became {title}:", ""]
        lines += ["| image | difficulty | before | verdict | after | verdict |", "|---" * 6 + "|"]
        for _, old, new in chosen[:: max(1, len(chosen) // each)][:each]:
            cells = [
                old["label"],
                old.get("difficulty", ""),
                short_answer(old["responses"][0]),
                old["categories"][0],
                short_answer(new["responses"][0]),
                new["categories"][0],
            ]
            lines.append("| " + " | ".join(map(escape, cells)) + " |")
        lines.append("")
    return "\n".join(lines).rstrip()


def short_answer(response: str, most: int = 60) -> str:
    """What stands between the answer tags, or the end of the response where there are none; at most
    so many characters."""
    if "<answer>" not in response:
        return response[-most:]
    answer = response.split("<answer>")[-1].split("</answer>")[0].strip()
    return answer if len(answer) <= most else answer[: most - 1] + "…"


def escape(text: str) -> str:
    """One line in which nothing is markup."""
    for char in "\\|<>&`*_~[]":
        text = text.replace(char, "\\" + char)
    return " ".join(text.split())
