"""`report.md`: a table before and after, and answers that changed."""

from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath

from speciarl_jax.metrics import Score
from speciarl_jax.verify.category import Category

# From the best category down, as people read the ladder.
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


def write(
    path: epath.Path,
    *,
    summary: Mapping[str, Any],
    scores: Mapping[str, Score],
    history: Sequence[Mapping[str, float]],
    before: Sequence[Mapping[str, Any]],
    after: Sequence[Mapping[str, Any]],
) -> None:
    """Writes `report.md`.

    Args:
      path: of the file.
      summary: the content of `summary.json`.
      scores: of each policy.
      history: rows of `metrics.jsonl`.
      before: greedy rows of `predictions.jsonl`, of the base.
      after: likewise of the trained policy, of the same pictures.
    """
    pictures = sum(next(iter(scores.values())).histogram.values())
    parts = [
        "# SpeciaRL: before and after",
        f"{pictures} evaluation pictures, greedy answers; {summary['steps']} steps in "
        f"{summary['wall_seconds'] / 60:.1f} minutes, evaluation and compilation included.",
        table(scores),
        "Correctness: share of answers that are neither wrong, abstained nor unparsed. "
        "Specificity: mean weight of the correct ones. HM: their harmonic mean.",
        "## Training",
        _curve(history),
        "## Answers that changed",
        _changes(before, after),
    ]
    path.write_text("\n\n".join(parts) + "\n")


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


def _changes(before, after, each: int = 15) -> str:
    """Pictures whose verdict rose, and pictures whose verdict fell."""
    rank = {name: i for i, name in enumerate(reversed(ORDER))}
    pairs = [
        (rank[new["categories"][0]] - rank[old["categories"][0]], old, new)
        for old, new in zip(before, after, strict=True)
        # An answer that a judge failed to judge has no rank.
        if {old["categories"][0], new["categories"][0]} <= rank.keys()
    ]
    lines = []
    for title, chosen in (
        ("better", [p for p in pairs if p[0] > 0]),
        ("worse", [p for p in pairs if p[0] < 0]),
    ):
        lines += [f"### {len(chosen)} of {len(pairs)} became {title}", ""]
        lines += ["| picture | difficulty | before | verdict | after | verdict |", "|---" * 6 + "|"]
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
