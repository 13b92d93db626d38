"""The figures as PNG files, of one run or of several side by side.

All take entries of "runs" in `metrics.json` by the name that they go by, or rows of
`metrics.jsonl`.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from speciarl_jax.evaluation.report import palette
from speciarl_jax.evaluation.report.charts import smoothed

Run = Mapping[str, Any]
_MEASURES = {"correctness": "correctness", "specificity": "specificity", "hm": "HM"}
_CURVES = {
    "reward/mean": "mean reward",
    "verify/specific": "share of specific answers",
    "verify/wrong": "share of wrong answers",
    "update/kl": "KL to the base, nats a token",
    "update/entropy": "entropy, nats a token",
    "rollout/completion_length": "length of answers, tokens",
}
_DPI = 150


def write_all(
    folder: epath.Path,
    runs: Mapping[str, Run],
    histories: Mapping[str, Sequence[Mapping[str, float]]],
) -> list[epath.Path]:
    """Writes every figure for which there are numbers.

    Args:
      folder: receives the files; exists.
      runs: name -> entry of "runs" in `metrics.json`, the base first.
      histories: name -> rows of `metrics.jsonl`.

    Returns:
      The files.
    """
    figures = {}
    if runs:
        figures |= {"trade_off": trade_off(runs), "categories": categories(runs)}
    if any(run.get("best_of") for run in runs.values()):
        figures["best_of"] = best_of(runs)
    if any(histories.values()):
        figures["training"] = training(histories)
    paths = []
    for name, figure in figures.items():
        paths.append(folder / f"{name}.png")
        # Not by its path: matplotlib opens no gs://.
        with paths[-1].open("wb") as file:
            figure.savefig(file, format="png", dpi=_DPI)
    return paths


def trade_off(runs: Mapping[str, Run]) -> Figure:
    """Specificity against correctness with intervals, on contours of equal harmonic mean."""
    figure, (axes,) = _figure(1, 5.6, 4.8)
    points = np.array(
        [[r["score"][k] for k in ("correctness", "specificity")] for r in runs.values()]
    )
    low = np.clip(points.min(axis=0) - 0.1, 0, 1)
    high = np.clip(points.max(axis=0) + 0.1, 0, 1)
    x, y = np.meshgrid(*(np.linspace(a, b, 200) for a, b in zip(low, high, strict=True)))
    lines = axes.contour(
        x, y, 2 * x * y / np.maximum(x + y, 1e-9), np.arange(0.05, 1, 0.05), colors="#9a9a9a",
        linewidths=0.7, linestyles="dotted",
    )  # fmt: skip
    axes.clabel(lines, fmt="HM %.2f", fontsize=7)
    for number, ((name, run), (x, y)) in enumerate(zip(runs.items(), points, strict=True)):
        colour, _, marker = palette.policy_look(number)
        intervals = run.get("intervals") or {}
        spread = {
            side: [[value - intervals[key][0]], [intervals[key][1] - value]]
            for side, key, value in (("xerr", "correctness", x), ("yerr", "specificity", y))
            if key in intervals
        }
        axes.errorbar(x, y, **spread, fmt=marker, color=colour, markersize=8, capsize=3, label=name)
    axes.set(xlabel="correctness", ylabel="specificity", xlim=(low[0], high[0]))
    axes.set_ylim(low[1], high[1])
    axes.legend(frameon=False, loc="best")
    return figure


def categories(runs: Mapping[str, Run]) -> Figure:
    """A stacked bar of the shares of the categories for each run."""
    figure, (axes,) = _figure(1, 8, 1.5 + 0.55 * len(runs))
    left = np.zeros(len(runs))
    places = np.arange(len(runs))[::-1]
    totals = [max(sum(run["score"]["histogram"].values()), 1) for run in runs.values()]
    for category, look in palette.CATEGORIES.items():
        counts = [run["score"]["histogram"].get(category, 0) for run in runs.values()]
        share = np.array(counts) / totals
        if not share.any():
            continue
        label = f"{look.mark} {palette.name(category)}"
        axes.barh(
            places, share, left=left, color=look.colour, edgecolor="white", height=0.68, label=label
        )
        for place, start, width in zip(places, left, share, strict=True):
            if width > 0.045:
                words = f"{look.mark} {100 * width:.0f}%" if width > 0.085 else look.mark
                at = start + width / 2
                axes.text(at, place, words, ha="center", va="center", color=look.on, fontsize=8)
        left = left + share
    axes.set_yticks(places, list(runs))
    axes.set(xlim=(0, 1), xlabel="share of greedy answers")
    axes.legend(frameon=False, ncols=4, fontsize=8, loc="lower center", bbox_to_anchor=(0.45, 1.0))
    return figure


def best_of(runs: Mapping[str, Run]) -> Figure:
    """Correctness, specificity and HM of the best of n samples against n."""
    figure, all_axes = _figure(3, 10, 3.4)
    for axes, (key, title) in zip(all_axes, _MEASURES.items(), strict=True):
        for number, (name, run) in enumerate(runs.items()):
            rows = run.get("best_of") or []
            if rows:
                counts = [row["n"] for row in rows]
                _line(axes, number, name, counts, [row[key] for row in rows], mark=True)
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter("{x:.0f}")
        axes.set(xlabel="samples", title=title)
    all_axes[0].legend(frameon=False, fontsize=8)
    return figure


def training(histories: Mapping[str, Sequence[Mapping[str, float]]]) -> Figure:
    """Curves of training against the step: as measured (pale), and means of neighbours."""
    kept = [k for k in _CURVES if any(k in row for rows in histories.values() for row in rows)]
    figure, all_axes = _figure(max(len(kept), 1), 10, 3.1)
    for axes, key in zip(all_axes, kept, strict=False):
        for number, (name, rows) in enumerate(histories.items()):
            known = [row for row in rows if key in row and np.isfinite(row[key])]
            if known:
                steps, values = [r["step"] for r in known], [r[key] for r in known]
                axes.plot(steps, values, color=palette.policy_look(number)[0], alpha=0.25)
                _line(axes, number, name, steps, smoothed(values))
        axes.set(xlabel="step", title=_CURVES[key])
    if len(histories) > 1 and kept:
        all_axes[0].legend(frameon=False, fontsize=8)
    return figure


def _line(axes: Axes, number: int, name: str, x: Any, y: Any, mark: bool = False) -> None:
    colour, dashes, marker = palette.policy_look(number)
    style = (0, tuple(map(float, dashes.split()))) if dashes else "-"
    options = {"marker": marker, "markersize": 4} if mark else {}
    axes.plot(x, y, color=colour, linestyle=style, label=name, **options)


def _figure(count: int, width: float, height: float) -> tuple[Figure, list[Axes]]:
    """`count` axes, three a row, without the box around them."""
    rows, columns = -(-count // 3), min(count, 3)
    figure = Figure(figsize=(width, height * rows), layout="constrained")
    all_axes = list(np.atleast_1d(figure.subplots(rows, columns)).ravel())
    for axes in all_axes[count:]:
        axes.set_visible(False)
    for axes in all_axes:
        axes.spines[["top", "right"]].set_visible(False)
        axes.title.set_fontsize(10)
    return figure, all_axes[:count]
