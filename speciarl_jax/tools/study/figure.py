"""Correctness against specificity of every row: a point each seed, the mean marked and named."""

import io
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from matplotlib.transforms import Bbox

from speciarl_jax.evaluation.report import figures, palette
from speciarl_jax.evaluation.report.panel import INK_3, PAPER, STEPS, STYLE

# Up to so many rows the names stand in the panel; beyond, numbers do, and names beside it.
_MOST_NAMES = 8
# Looks beside those of `palette.POLICIES`: markers tell rows apart that share a colour.
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "p", "h", "*", "d", "8", "H")
_WIDTH, _HEIGHT = 6.4, 5.4  # of a panel, in inches
_FRONTIER = {"color": INK_3, "lw": 1.6, "marker": ".", "ms": 5}


def draw(found: Mapping[str, Any]) -> Figure | None:
    """Draws the sets of `study.json` side by side; None where no run is finished."""
    sets = {name: one for name, one in found["sets"].items() if one["rows"]}
    if not sets:
        return None
    names = list(dict.fromkeys(row["name"] for one in sets.values() for row in one["rows"]))
    # The base first: it has the grey look.
    names.sort(key=lambda name: name != found["base"])
    looks = {name: (i, *_look(i)) for i, name in enumerate(names)}
    columns = min(len(sets), 3)
    lines = -(-len(sets) // columns)
    with matplotlib.rc_context(STYLE):
        size = columns * _WIDTH, lines * _HEIGHT + (0.45 + 0.26 * -(-len(names) // 4))
        figure = Figure(figsize=size, layout="constrained")
        every = figure.subplots(lines, columns, squeeze=False).ravel()
        texts = []
        for axes, (name, one) in zip(every, sets.items(), strict=False):
            texts.append((axes, *_panel(axes, name, one, looks)))
        for axes in every[len(sets) :]:
            axes.set_visible(False)
        handles = [
            matplotlib.lines.Line2D(
                [], [], color=colour, marker=marker, ls="", ms=8, mec=PAPER,
                label=f"{number + 1}  {name}" if len(names) > _MOST_NAMES else name,
            )
            for name, (number, colour, marker) in looks.items()
        ]  # fmt: skip
        if any(one.get("frontier") for one in sets.values()):
            what = f"names that samples of {found['base']} agree on"
            handles.append(matplotlib.lines.Line2D([], [], **_FRONTIER, label=what))
        figure.legend(handles=handles, loc="outside upper left", ncols=4)
        figure.draw_without_rendering()
        # What is placed now must not move the panels any more.
        figure.set_layout_engine("none")
        for axes, taken, points in texts:
            shown = {
                str(looks[name][0] + 1) if len(names) > _MOST_NAMES else name: one
                for name, one in points.items()
            }
            _name_points(axes, shown, taken)
    return figure


def _look(number: int) -> tuple[str, str]:
    """Returns colour and marker of a row; no two of the first ninety are alike."""
    colours = [look.colour for look in palette.POLICIES]
    turn = number // len(colours)
    return colours[number % len(colours)], _MARKERS[(number + turn) % len(_MARKERS)]


def _panel(
    axes: Axes, name: str, one: Mapping[str, Any], looks: Mapping[str, Any]
) -> tuple[list[Any], dict[str, tuple[float, float]]]:
    """Draws an image set; returns the texts that are there, and the mean of each row."""
    keys, points = ("correctness", "specificity"), {}
    spread = {
        row["name"]: np.array([row["scores"][key]["by_seed"] for key in keys])
        for row in one["rows"]
    }
    values = np.concatenate(list(spread.values()), axis=1)
    limits = [figures.limits_of(values[i]) for i in (0, 1)]
    taken = list(figures.contours(axes, *limits))
    if one.get("frontier"):
        # Without influence on the limits: its ends are far from all methods.
        axes.plot(*[[point[key] for point in one["frontier"]] for key in keys], **_FRONTIER)
    for row in one["rows"]:
        number, colour, marker = looks[row["name"]]
        mean = tuple(row["scores"][key]["value"] for key in keys)
        if len(spread[row["name"]][0]) > 1:
            axes.plot(*spread[row["name"]], marker, color=colour, ms=5, alpha=0.55, mew=0, zorder=2)
        size = 15 if marker == "*" else 11
        axes.plot(*mean, marker, color=colour, ms=size, mec=PAPER, mew=1.2, zorder=3 + number / 100)
        points[row["name"]] = mean
    axes.set(xlabel="correctness", ylabel="specificity", xlim=limits[0], ylim=limits[1])
    axes.xaxis.set_major_locator(MaxNLocator(5, steps=STEPS))
    axes.set_title(f"{name} ({one['images']:,} images)")
    return taken, points


def _name_points(
    axes: Axes, points: Mapping[str, tuple[float, float]], taken: Sequence[Any]
) -> None:
    """Writes names beside points where nothing else is; a thin line leads to those far away.

    The nearest free place around each point is taken, in the order of the points from above.
    """
    renderer = axes.figure._get_renderer()
    scale = axes.figure.dpi / 72
    at = {name: axes.transData.transform(point) for name, point in points.items()}
    marks = [Bbox.from_extents(*(p - 6 * scale), *(p + 6 * scale)) for p in at.values()]
    blocked = []
    for text in taken:
        box = text.get_window_extent(renderer)
        text.set_clip_on(False)
        # A value of a contour that lies under a mark is left out.
        text.set_visible(not any(_overlap(box, mark) for mark in marks))
        blocked += [box] if text.get_visible() else []
    inside = axes.get_window_extent(renderer)
    for name, point in sorted(at.items(), key=lambda item: -item[1][1]):
        text = axes.text(0, 0, name, fontsize=11, weight="bold", transform=None, zorder=5)
        size = text.get_window_extent(renderer)
        box, radius = _free_place(point, size.width, size.height, [*marks, *blocked], inside, scale)
        text.set_position((box.x0, box.y0 + size.height * 0.16))
        blocked.append(box)
        # In the data's coordinates, so that it holds in every resolution.
        corner = axes.transData.inverted().transform(text.get_position())
        text.set_transform(axes.transData)
        text.set_position(corner)
        if radius > 16 * scale:
            near = np.clip(point, box.min, box.max)
            ends = axes.transData.inverted().transform([point, near])
            axes.plot(*ends.T, color=INK_3, lw=0.8, zorder=1.5)


def _free_place(
    point: np.ndarray,
    width: float,
    height: float,
    blocked: Sequence[Bbox],
    inside: Bbox,
    scale: float,
) -> tuple[Bbox, float]:
    """Finds a box of this size near a point that overlaps nothing, or else the least.

    Returns:
      The box, and how far it is from the point, both in pixels.
    """
    best, least = (Bbox.from_bounds(*point, width, height), 0.0), np.inf
    for radius in (12 * scale, 16 * scale, 26 * scale, 38 * scale, 52 * scale, 70 * scale):
        for angle in np.deg2rad((0, 180, 90, 270, 45, 135, 315, 225, 22, 158, 202, 338, 68, 112)):
            x, y = point + radius * np.array([np.cos(angle), np.sin(angle)])
            # The side of the box that looks at the point touches the circle.
            left = x - width * (1 - np.cos(angle)) / 2
            box = Bbox.from_bounds(left, y - height * (1 - np.sin(angle)) / 2, width, height)
            cost = sum(_overlap(box, other) for other in blocked)
            cost += width * height - _overlap(box, inside)
            if cost < least - 1e-9:
                best, least = (box, radius), cost
        if least <= 1e-9:
            break
    return best


def _overlap(a: Bbox, b: Bbox) -> float:
    """Returns the area that two boxes share, in square pixels."""
    width = min(a.x1, b.x1) - max(a.x0, b.x0)
    height = min(a.y1, b.y1) - max(a.y0, b.y0)
    return max(width, 0.0) * max(height, 0.0)


def files(found: Mapping[str, Any]) -> dict[str, bytes]:
    """Returns plot.svg and plot.png as bytes by name; nothing where there is nothing to draw."""
    figure, made = draw(found), {}
    if figure is None:
        return {}
    with matplotlib.rc_context(STYLE | {"svg.hashsalt": "study"}):
        for kind, options in (("svg", {"metadata": {"Date": None}}), ("png", {"dpi": 144})):
            file = io.BytesIO()
            figure.savefig(file, format=kind, **options)
            made[f"plot.{kind}"] = file.getvalue()
    return made
