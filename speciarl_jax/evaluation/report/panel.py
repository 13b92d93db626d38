"""One drawing for the page and for the PNG files: its style, and what all figures share.

Colours are those of a light page; `svg.inline` replaces them by the page's variables. The `gid` of
an artist is "CLASS|TITLE": its CSS class on the page, and the words that appear under the pointer.
"""

import io
from collections.abc import Callable, Sequence
from typing import Any, BinaryIO, NamedTuple

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from speciarl_jax.evaluation.report import palette

PAPER, INK, INK_2, INK_3, RULE, ACCENT = (
    palette.LIGHT[name] for name in ("paper", "ink", "ink-2", "ink-3", "rule-2", "accent")
)
STEPS = (1, 2, 5, 10)  # from tick to tick, times a power of ten
STYLE = {
    "axes.axisbelow": True,
    "axes.edgecolor": INK_3,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.labelcolor": INK_2,
    "axes.spines.left": False,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlecolor": INK_2,
    "axes.titlelocation": "left",
    "axes.titlepad": 9.0,
    "axes.titlesize": "medium",
    "figure.constrained_layout.hspace": 0.06,
    "figure.constrained_layout.wspace": 0.04,
    "font.size": 12.5,
    "grid.color": RULE,
    "grid.linewidth": 1.0,
    "legend.fontsize": "small",
    "legend.frameon": False,
    "lines.linewidth": 2.0,
    "svg.fonttype": "none",
    "text.color": INK,
    "text.parse_math": False,
    "xtick.color": INK_3,
    "xtick.labelcolor": INK_2,
    "ytick.color": INK_3,
    "ytick.labelcolor": INK_2,
    "ytick.major.pad": 7.0,
    "ytick.major.size": 0.0,
}


class Panel(NamedTuple):
    """One drawing."""

    label: str  # what it shows, in words
    width: int  # in pixels of the page
    height: int  # likewise
    draw: Callable[[Axes], None]  # draws it on axes


def compose(panels: Sequence[Panel], per_row: int = 3) -> Figure:
    """Draws panels side by side, a pixel of the page as a point."""
    columns = min(len(panels), per_row)
    rows = -(-len(panels) // columns)
    size = columns * panels[0].width / 72, rows * panels[0].height / 72
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=size, layout="constrained")
        all_axes = figure.subplots(rows, columns, squeeze=False).ravel()
        for axes, panel in zip(all_axes, panels, strict=False):
            panel.draw(axes)
    for axes in all_axes[len(panels) :]:
        axes.set_visible(False)
    for artist in figure.findobj():
        artist.set_clip_on(False)
    return figure


def save_png(panels: Sequence[Panel], file: BinaryIO) -> None:
    """Writes panels side by side, with a legend where the first one has several names in it."""
    figure = compose(panels)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    legend = dict(zip(labels, handles, strict=True))
    with matplotlib.rc_context(STYLE):
        if len(legend) > 1:
            figure.legend(legend.values(), legend, loc="outside upper left", ncols=4)
        figure.savefig(file, format="png", dpi=144)


def to_svg(panel: Panel, salt: str) -> bytes:
    """Returns a panel as an SVG document; `salt` decides about its ids."""
    file = io.BytesIO()
    with matplotlib.rc_context(STYLE | {"svg.hashsalt": salt}):
        compose([panel]).savefig(file, format="svg", transparent=True)
    return file.getvalue()


def on_colour(axes: Axes, x: float, y: float, category: str, text: str) -> None:
    """Writes text on an area that has the colour of a category."""
    look = palette.CATEGORIES[category]
    axes.text(x, y, text, ha="center", va="center", color=look.on, weight="bold", gid="on|")


def line(axes: Axes, number: int, name: str, x: Any, y: Any, mark: bool = False) -> None:
    look = palette.policy_look(number)
    style = (0, look.dashes) if look.dashes else "-"
    options = {"marker": look.marker, "ms": 7, "mec": PAPER} if mark else {}
    axes.plot(x, y, color=look.colour, linestyle=style, label=name, **options)
