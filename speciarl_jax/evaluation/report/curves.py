"""The curves of training against the step."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from speciarl_jax.evaluation.report import palette
from speciarl_jax.evaluation.report.panel import (
    ACCENT,
    INK_3,
    PAPER,
    STEPS,
    Panel,
    line,
    on_colour,
)

History = Sequence[Mapping[str, float]]
_CURVES = {
    "reward/mean": "mean reward",
    "verify/specific": "share of specific answers",
    "verify/wrong": "share of wrong answers",
    "update/kl": "KL to the base, nats a token",
    "update/entropy": "entropy, nats a token",
    "update/loss": "loss",
    "reward/zero_std_groups": "groups without signal",
    "rollout/completion_length": "length of answers, tokens",
    "update/grad_norm": "norm of the gradient",
    "update/clip_frac": "share of clipped tokens",
    "verify/unjudged": "share without a verdict",
}
# Measures of `validation/SET/MEASURE`, each a panel with a curve for each set.
_VALIDATION = {
    "hm": "HM in validation",
    "correctness": "correctness in validation",
    "specificity": "specificity in validation",
}


def training(histories: Mapping[str, History]) -> list[Panel]:
    """Draws curves against the step; of one run also the stacked shares of the categories.

    Curves of validation come first, where there was any.

    A curve that is zero throughout is left out.
    """
    panels = _validation(histories)
    stacked = [rows for rows in histories.values() if any("verify/specific" in r for r in rows)]
    stacks = len(histories) == 1 and bool(stacked)
    if stacks:
        panels.append(_stack([row for row in stacked[0] if "verify/specific" in row]))
    for key, title in _CURVES.items():
        known = {
            name: [(row["step"], row[key]) for row in rows if np.isfinite(row.get(key, math.nan))]
            for name, rows in histories.items()
        }
        drawn = any(value for points in known.values() for _, value in points)
        if drawn and not (stacks and key in ("verify/specific", "verify/wrong")):
            panels.append(_curve(known, title))
    return panels


def _validation(histories: Mapping[str, History]) -> list[Panel]:
    """Draws each measure of validation: a curve for each set, and of several runs for each run."""
    panels = []
    for measure, title in _VALIDATION.items():
        known: dict[str, list[tuple[int, float]]] = {}
        for run, rows in histories.items():
            for row in rows:
                for key in row:
                    if key.startswith("validation/") and key.endswith(f"/{measure}"):
                        name = key.split("/")[1]
                        name = name if len(histories) == 1 else f"{run}, {name}"
                        known.setdefault(name, []).append((row["step"], row[key]))
        if known:
            panels.append(_curve(known, title))
    return panels


def _curve(known: Mapping[str, Sequence[tuple[int, float]]], title: str) -> Panel:
    """Draws the values of each run as they were measured (faint), and their running mean."""

    def draw(axes):
        for number, (name, points) in enumerate(known.items()):
            if not points:
                continue
            steps, values = zip(*points, strict=True)
            one = len(known) == 1
            raw = INK_3 if one else palette.policy_look(number).colour
            dots = {"marker": "o", "ms": 3.6, "mew": 0, "ls": ""} if len(steps) < 40 else {}
            axes.plot(steps, values, color=raw, alpha=0.42, lw=1, **dots)
            if one:
                axes.plot(steps, smoothed(values), color=ACCENT, label=name)
            else:
                line(axes, number, name, steps, smoothed(values))
        _over_steps(axes, title)

    spoken = "; ".join(
        f"{name} from {points[0][1]:.4g} at step {points[0][0]} to {points[-1][1]:.4g} at "
        f"{points[-1][0]}"
        for name, points in known.items()
        if points
    )
    return Panel(f"{title}. {spoken}", 340, 220, draw)


def _stack(rows: History) -> Panel:
    """Draws the shares of the categories among the sampled answers, stacked."""

    def draw(axes):
        steps, floor = [row["step"] for row in rows], np.zeros(len(rows))
        for category in reversed(palette.ORDER):
            share = np.array(smoothed([row.get(f"verify/{category}", 0.0) for row in rows]))
            if share.max() <= 0:
                continue
            look = palette.CATEGORIES[category]
            title = f"part|{palette.name(category)}"
            roof = np.minimum(floor + share, 1)
            axes.fill_between(steps, floor, roof, color=look.colour, ec=PAPER, lw=0.8, gid=title)
            # The mark is written where the area is highest, but not at the very edge.
            inner = slice(len(rows) // 20, len(rows) - len(rows) // 20)
            at = inner.start + int(np.argmax((roof - floor)[inner]))
            if roof[at] - floor[at] > 0.08:
                on_colour(axes, steps[at], (roof[at] + floor[at]) / 2, category, look.mark)
            floor = roof
        axes.set_ylim(0, 1)
        _over_steps(axes, "share of sampled answers")

    return Panel("Shares of the categories over training", 340, 220, draw)


def _over_steps(axes: Axes, title: str) -> None:
    axes.margins(x=0)
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True, steps=STEPS))
    axes.yaxis.set_major_locator(MaxNLocator(4, steps=STEPS))
    axes.set(xlabel="step", title=title)


def smoothed(values: Sequence[float]) -> list[float]:
    """Averages over windows of about a tenth of the curve, shorter at its ends."""
    reach = len(values) // 20
    parts = [values[max(0, i - reach) : i + reach + 1] for i in range(len(values))]
    return [sum(part) / len(part) for part in parts]
