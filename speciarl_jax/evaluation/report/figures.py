"""The figures of an evaluation. Each is drawn once, for the page and for the PNG files.

The page holds each `Panel` as SVG (`svg.inline`); `write_png` puts the panels of a figure side by
side. All are made of entries of "runs" in `metrics.json` by name, or of counts.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath
from matplotlib.axes import Axes
from matplotlib.patches import PathPatch, Rectangle
from matplotlib.path import Path
from matplotlib.text import Text
from matplotlib.ticker import MaxNLocator

from speciarl_jax.evaluation import pairs
from speciarl_jax.evaluation.report import curves, palette
from speciarl_jax.evaluation.report.panel import (
    INK_3,
    PAPER,
    STEPS,
    Panel,
    line,
    on_colour,
    save_png,
)

Run = Mapping[str, Any]
MEASURES = {"correctness": "correctness", "specificity": "specificity", "hm": "HM"}


def write_png(
    folder: epath.Path, runs: Mapping[str, Run], histories: Mapping[str, curves.History]
) -> list[epath.Path]:
    """Writes every figure for which there are numbers, and returns the files.

    Args:
      folder: receives the files; exists.
      runs: name -> entry of "runs" in `metrics.json`, the base first.
      histories: name -> rows of `metrics.jsonl`.
    """
    figures = {}
    if runs:
        figures |= {"trade_off": [trade_off(runs)], "categories": [categories(runs)]}
    if any(run.get("best_of") for run in runs.values()):
        figures["best_of"] = best_of(runs)
    if training := curves.training(histories):
        figures["training"] = training
    paths = []
    for name, panels in figures.items():
        paths.append(folder / f"{name}.png")
        # Through an open file, because matplotlib opens no gs:// path.
        with paths[-1].open("wb") as file:
            save_png(panels, file)
    return paths


def trade_off(runs: Mapping[str, Run]) -> Panel:
    """Draws specificity against correctness, with intervals and lines of equal harmonic mean."""
    keys, entries = ("correctness", "specificity"), list(runs.values())
    points = np.array([[run["score"][key] for key in keys] for run in entries])
    # Names stand beside their points while they are few and short.
    beside = len(runs) <= 6 and max(map(len, runs)) <= 30

    def draw(axes):
        ends = [[(run.get("intervals") or {}).get(key, ()) for run in entries] for key in keys]
        limits = [limits_of([*points[:, i], *sum(map(tuple, ends[i]), ())]) for i in (0, 1)]
        contours(axes, *limits)
        for number, (name, run) in enumerate(runs.items()):
            x, y = points[number]
            base = pairs.base_of(run, entries)
            if base is not None:
                start = points[[run is base for run in entries].index(True)]
                axes.plot(*zip(start, (x, y), strict=True), color=INK_3, lw=1.2, gid="step|")
            spread = {
                side: np.abs(np.subtract(end[number], value)).reshape(2, 1)
                for side, value, end in zip(("xerr", "yerr"), (x, y), ends, strict=True)
                if end[number]
            }
            look = palette.policy_look(number)
            axes.errorbar(
                x, y, **spread, fmt=look.marker, color=look.colour, markersize=11,
                markeredgecolor=PAPER, label=None if beside else name, gid=f"dot|{name}",
            )  # fmt: skip
            if beside:
                # Names of points that nearly coincide go above and below in turn.
                near = np.abs(points[:number] - points[number]) < 0.08 * np.ptp(limits, axis=1)
                height = (8, -19, 23, -34, 38, -49)[np.all(near, axis=1).sum()]
                left = x > np.mean(limits[0])
                axes.annotate(
                    name, (x, y), (-10 if left else 10, height), textcoords="offset points",
                    ha="right" if left else "left", weight="bold", gid="mark|",
                )  # fmt: skip
        axes.set(xlabel="correctness", xlim=limits[0], ylim=limits[1])
        axes.xaxis.set_major_locator(MaxNLocator(5, steps=STEPS))
        axes.set_title("specificity")

    spoken = "; ".join(
        f"{name}: correctness {x:.3f}, specificity {y:.3f}"
        for name, (x, y) in zip(runs, points, strict=True)
    )
    return Panel(f"Specificity against correctness. {spoken}", 440, 376, draw)


def contours(
    axes: Axes, limits_x: tuple[float, float], limits_y: tuple[float, float]
) -> list[Text]:
    """Draws lines of equal harmonic mean, each with its value at its lower right end.

    Returns:
      The values.
    """
    levels = np.arange(0.05, 1, 0.05)
    x, y = np.meshgrid(np.linspace(*limits_x, 60), np.linspace(*limits_y, 60))
    style = {"colors": INK_3, "linewidths": 1, "linestyles": "dotted"}
    lines = axes.contour(x, y, 2 * x * y / np.maximum(x + y, 1e-9), levels, **style)
    left, right = np.dot(limits_x, [[0.85, 0.07], [0.15, 0.93]])
    bottom, top = np.dot(limits_y, [[0.96, 0.0], [0.04, 1.0]])
    # level = 2 x y / (x + y), solved for x at the bottom, and for y there.
    x = np.minimum(right, levels * bottom / np.maximum(2 * bottom - levels, 1e-9))
    y = levels * x / np.maximum(2 * x - levels, 1e-9)
    places = [place for place in zip(x, y, strict=True) if place[0] > left and place[1] < top]
    return axes.clabel(lines, fmt="HM %.2f", fontsize=10.5, manual=places)


def limits_of(values: Sequence[float]) -> tuple[float, float]:
    """Finds limits of an axis around shares: multiples of .05, at least .2 apart, in [0, 1]."""
    low, high = min(values), max(values)
    spare = max(0.02, (0.2 - (high - low)) / 2)
    return max(math.floor((low - spare) * 20) / 20, 0), min(math.ceil((high + spare) * 20) / 20, 1)


def _shares(run: Run) -> dict[str, float]:
    """Computes the share of each category that occurs among greedy answers."""
    counts = run["score"]["histogram"]
    total = max(sum(counts.values()), 1)
    return {c: counts[c] / total for c in palette.ORDER if counts.get(c)}


def categories(runs: Mapping[str, Run]) -> Panel:
    """Draws a stacked bar of the categories for each policy."""

    def draw(axes):
        axes.axis("off")
        for row, (name, run) in enumerate(runs.items()):
            axes.text(0, row - 0.36, name, weight="bold", fontsize=13.5)
            left = 0.0
            for category, share in _shares(run).items():
                look, words = palette.CATEGORIES[category], palette.name(category)
                axes.barh(
                    row, share, 0.56, left, color=look.colour, edgecolor=PAPER,
                    label=f"{look.mark} {words}", gid=f"part|{words}: {100 * share:.1f}%",
                )  # fmt: skip
                if share > 0.077:
                    text = f"{look.mark} {100 * share:.0f}%" if share > 0.145 else look.mark
                    on_colour(axes, left + share / 2, row, category, text)
                left += share
        axes.set(xlim=(0, 1), ylim=(len(runs) - 0.7, -0.7))

    spoken = "; ".join(
        f"{name}: "
        + ", ".join(f"{palette.name(c)} {100 * s:.0f}%" for c, s in _shares(run).items())
        for name, run in runs.items()
    )
    return Panel(f"Shares of categories. {spoken}", 440, 10 + 56 * len(runs), draw)


def shift(counts: Mapping[tuple[str, str], int], before: str, after: str) -> Panel:
    """Draws bands from left to right that show which category became which.

    Args:
      counts: (category before, category after) -> images.
    """
    used = [[c for c in palette.ORDER if any(k[side] == c for k in counts)] for side in (0, 1)]
    number_AB = np.array([[counts.get((a, b), 0) for b in used[1]] for a in used[0]])
    total, sizes = number_AB.sum(), (number_AB.sum(axis=1), number_AB.sum(axis=0))
    gap, wide, x = 7, 12, (116, 312)
    scale = (380 - gap * (max(map(len, used)) - 1)) / total
    tops = [30 + scale * (n.cumsum() - n) + gap * np.arange(len(n)) for n in sizes]
    from_AB = tops[0][:, None] + scale * (number_AB.cumsum(axis=1) - number_AB)
    to_AB = tops[1] + scale * (number_AB.cumsum(axis=0) - number_AB)

    def draw(axes):
        axes.axis("off")
        for (i, j), n in np.ndenumerate(number_AB):
            if n:
                a, b = used[0][i], used[1][j]
                band = _band(x[0] + wide, from_AB[i, j], x[1], to_AB[i, j], n * scale)
                colour, alpha = palette.CATEGORIES[a].colour, 0.22 if a == b else 0.55
                words = f"{n} images: {palette.name(a)} to {palette.name(b)}"
                patch = PathPatch(band, color=colour, lw=0, alpha=alpha, gid=f"band|{words}")
                axes.add_patch(patch)
        for side in (0, 1):
            for one in zip(used[side], tops[side], sizes[side], strict=True):
                column(axes, side, *one)
        bold = {"weight": "bold", "fontsize": 13.5}
        axes.text(x[0] + wide, 16, before, ha="right", **bold)
        axes.text(x[1], 16, after, **bold)
        axes.set(xlim=(0, 440), ylim=(414, 0))

    def column(axes, side, category, top, n):
        look, height = palette.CATEGORIES[category], max(n * scale, 1)
        box = Rectangle((x[side], top), wide, height, fc=look.colour, ec=PAPER, gid="part|")
        axes.add_patch(box)
        words, share = f"{look.mark} {palette.name(category)}", f"{100 * n / total:.1f}%"
        words += ("\n" if height > 26 else " ") + share
        at, align = (x[0] - 7, "right") if side == 0 else (x[1] + wide + 7, "left")
        axes.text(at, top + height / 2, words, fontsize=12, ha=align, va="center")

    return Panel(f"Change of categories from {before} to {after}", 440, 424, draw)


def _band(x0: float, y0: float, x1: float, y1: float, height: float) -> Path:
    """Builds a band of constant height from (x0, y0) to (x1, y1), its upper corners."""
    middle, below0, below1 = (x0 + x1) / 2, y0 + height, y1 + height
    upper = [(x0, y0), (middle, y0), (middle, y1), (x1, y1)]
    lower = [(x1, below1), (middle, below1), (middle, below0), (x0, below0), (x0, y0)]
    curve = [Path.CURVE4] * 3
    return Path([*upper, *lower], [Path.MOVETO, *curve, Path.LINETO, *curve, Path.CLOSEPOLY])


def best_of(runs: Mapping[str, Run]) -> list[Panel]:
    """Draws each measure of the best of n samples against n."""
    return [_best_of(runs, key, title) for key, title in MEASURES.items()]


def _best_of(runs, key, title):
    sampled = {
        (i, name): {row["n"]: row[key] for row in run["best_of"]}
        for i, (name, run) in enumerate(runs.items())
        if run.get("best_of")
    }

    def draw(axes):
        for (number, name), rows in sampled.items():
            line(axes, number, name, list(rows), list(rows.values()), mark=True)
        counts = sorted({n for rows in sampled.values() for n in rows})
        axes.set_xscale("log", base=2)
        axes.set_xticks(counts, map(str, counts), minor=False)
        axes.set_ylim(limits_of([value for rows in sampled.values() for value in rows.values()]))
        axes.yaxis.set_major_locator(MaxNLocator(5, steps=STEPS))
        axes.set(xlabel="samples", title=title)

    return Panel(f"{title} of the best of n samples", 340, 244, draw)


def calibration(runs: Mapping[str, Run]) -> Panel:
    """Draws the share of correct answers against the agreement of samples.

    The area of a dot grows with its number of images.
    """
    bins = {
        (i, name): [row for row in run.get("calibration") or () if row["images"]]
        for i, (name, run) in enumerate(runs.items())
    }

    def draw(axes):
        axes.plot([0, 1], [0, 1], color=INK_3, lw=1.2, gid="step|")
        for (number, name), rows in bins.items():
            look, most = palette.policy_look(number), max((r["images"] for r in rows), default=1)
            x, y = ([row[key] for row in rows] for key in ("agreement", "correctness"))
            line(axes, number, name, x, y)
            for row in rows:
                words = "{images} images, agreement {agreement:.2f}, correct {correctness:.2f}"
                axes.plot(
                    row["agreement"], row["correctness"], look.marker, color=look.colour,
                    markeredgecolor=PAPER, markersize=5 + 12 * (row["images"] / most) ** 0.5,
                    gid=f"dot|{name}: {words.format(**row)}",
                )  # fmt: skip
        axes.set(xlim=(0, 1), ylim=(0, 1), xlabel="agreement of the samples")
        axes.set_title("share of correct answers")

    return Panel("Share of correct answers against the agreement of samples", 440, 360, draw)
