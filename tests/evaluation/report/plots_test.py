"""The PNG figures: what they draw is what they were given."""

import numpy as np
import pytest
import report_folder
from PIL import Image

from speciarl_jax.evaluation.report import folder, palette, plots


@pytest.fixture
def content(tmp_path):
    report_folder.make(tmp_path)
    return folder.read(tmp_path)


def named(content):
    return {run["policy"]: run for run in content.metrics["runs"]}


def test_every_figure_is_written_across_runs(content, tmp_path):
    runs = named(content)
    runs["bare"] = runs["base"] | {"intervals": {}, "best_of": [], "calibration": []}
    paths = plots.write_all(tmp_path, runs, {"one": content.history, "two": content.history[:5]})
    assert [p.name for p in paths] == [
        *("trade_off.png", "categories.png", "best_of.png", "training.png")
    ]
    for path in paths:
        with Image.open(path) as image:
            assert image.width > 600 and len(image.convert("RGB").getcolors(10**7)) > 10
    assert plots.write_all(tmp_path, {}, {}) == []


def test_bars_are_the_shares(content):
    runs = named(content)
    (axes,) = plots.categories(runs).axes
    bars = {}
    for bar in axes.patches:
        bars.setdefault(tuple(np.round(bar.get_facecolor()[:3], 3)), []).append(bar.get_width())
    total = sum(runs["base"]["score"]["histogram"].values())
    for category, look in palette.CATEGORIES.items():
        want = [run["score"]["histogram"].get(category, 0) / total for run in runs.values()]
        if any(want):
            colour = [int(look.colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
            assert bars[tuple(np.round(colour, 3))] == pytest.approx(want), category


def test_lines_are_the_numbers(content):
    runs = named(content)
    axes = plots.best_of(runs).axes[2]
    for line, run in zip(axes.lines, runs.values(), strict=True):
        assert list(line.get_xdata()) == [1, 2, 4, 8, 16, 32, 64]
        assert list(line.get_ydata()) == [row["hm"] for row in run["best_of"]]
    first = plots.training({"run": content.history}).axes[0]
    assert list(first.lines[0].get_ydata()) == [row["reward/mean"] for row in content.history]


def test_a_curve_with_numbers_that_are_not_finite_is_drawn_without_them(content):
    rows = [{"step": i, "update/kl": float("nan") if i == 2 else 0.1} for i in range(1, 5)]
    (axes,) = plots.training({"run": rows}).axes
    assert list(axes.lines[0].get_xdata()) == [1, 3, 4]
