"""The figures: what they draw is what they were given, in SVG as in PNG."""

import re
import xml.etree.ElementTree

import numpy as np
import pytest
import report_folder
from PIL import Image

from speciarl_jax.evaluation.report import curves, figures, folder, palette, panel, svg


@pytest.fixture
def content(tmp_path):
    report_folder.make(tmp_path)
    return folder.read(tmp_path)


def named(content):
    return {run["policy"]: run for run in content.metrics["runs"]}


def test_every_figure_is_written_across_runs(content, tmp_path):
    runs = named(content)
    runs["bare"] = runs["base"] | {"intervals": {}, "best_of": [], "calibration": []}
    paths = figures.write_png(tmp_path, runs, {"one": content.history, "two": content.history[:5]})
    assert [p.name for p in paths] == [
        *("trade_off.png", "categories.png", "best_of.png", "training.png")
    ]
    for path in paths:
        with Image.open(path) as image:
            assert image.width > 600 and len(image.convert("RGB").getcolors(10**7)) > 10
    assert figures.write_png(tmp_path, {}, {}) == []


def test_bars_are_the_shares(content):
    runs = named(content)
    (axes,) = panel.compose([figures.categories(runs)]).axes
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
    axes = panel.compose(figures.best_of(runs)).axes[2]
    for line, run in zip(axes.lines, runs.values(), strict=True):
        assert list(line.get_xdata()) == [1, 2, 4, 8, 16, 32, 64]
        assert list(line.get_ydata()) == [row["hm"] for row in run["best_of"]]
    panels = curves.training({"run": content.history})
    first = panel.compose(panels).axes[1]
    assert first.get_title(loc="left") == "mean reward"
    assert list(first.lines[0].get_ydata()) == [row["reward/mean"] for row in content.history]


def test_a_curve_with_numbers_that_are_not_finite_is_drawn_without_them(content):
    rows = [{"step": i, "update/kl": float("nan") if i == 2 else 0.1} for i in range(1, 5)]
    (axes,) = panel.compose(curves.training({"run": rows})).axes
    assert list(axes.lines[0].get_xdata()) == [1, 3, 4]


def test_several_runs_have_curves_of_their_own_in_place_of_stacked_categories(content):
    names = [p.label.split(".")[0] for p in curves.training({"run": content.history})]
    assert names[0] == "Shares of the categories over training"
    both = [p.label.split(".")[0] for p in curves.training({"a": content.history, "b": []})]
    assert both[:2] == ["mean reward", "share of specific answers"]
    assert not curves.training({"a": []})


def test_validations_have_a_curve_for_each_set(content):
    rows = [
        {"step": step, f"validation/{name}/{measure}": value + step / 100}
        for step in (0, 10, 20)
        for name, value in (("near", 0.5), ("far", 0.2))
        for measure in ("hm", "correctness", "specificity")
    ]
    panels = curves.training({"run": [*rows, *content.history]})
    assert [p.label.split(".")[0] for p in panels[:3]] == [
        *("HM in validation", "correctness in validation", "specificity in validation")
    ]
    assert "near from 0.5 at step 0 to 0.7 at 20; far from 0.2" in panels[0].label
    axes = panel.compose(panels[:3]).axes[0]
    near, _, far, _ = [list(line.get_ydata()) for line in axes.lines]  # each with its mean
    assert near == pytest.approx([0.5, 0.6, 0.7]) and far == pytest.approx([0.2, 0.3, 0.4])
    several = curves.training({"one": rows, "two": rows})
    assert "one, near from 0.5" in several[0].label and "two, far" in several[0].label


def test_a_band_is_as_high_as_its_share():
    drawing = figures.shift({("wrong", "specific"): 3, ("wrong", "wrong"): 1}, "a", "b")
    (axes,) = panel.compose([drawing]).axes
    bands = [patch for patch in axes.patches if patch.get_gid().startswith("band|")]
    heights = {
        patch.get_gid().partition("|")[2]: np.ptp(patch.get_path().vertices[[0, 7], 1])
        for patch in bands
    }
    three, one = (heights[f"{n} images: wrong to {c}"] for n, c in ((3, "specific"), (1, "wrong")))
    assert three == pytest.approx(3 * one)


def test_a_point_of_the_trade_off_lies_where_its_numbers_say(content):
    runs = dict(zip(["one", "two"], content.metrics["runs"], strict=True))
    for run, xy in zip(runs.values(), [(0.5, 0.4), (0.7, 0.8)], strict=True):
        run["score"] |= dict(zip(("correctness", "specificity"), xy, strict=True))
    drawing = figures.trade_off(runs)
    assert "one: correctness 0.500, specificity 0.400" in drawing.label
    tree = xml.etree.ElementTree.fromstring(svg.inline(drawing, "trade-off"))
    dots = [e for e in tree.iter("use") if float(e.get("x")) > 0 and "policy" in e.get("style")]
    one, two = ((float(e.get("x")), float(e.get("y"))) for e in dots)
    assert two[0] > one[0] and two[1] < one[1]


def test_a_hostile_name_stays_text_in_svg(content):
    (first, *_) = content.metrics["runs"]
    for name in [*report_folder.HOSTILE[:6], "$x$", "a|b"]:
        text = svg.inline(figures.categories({name: first}), "shares")
        tree = xml.etree.ElementTree.fromstring(text)
        assert name in [node.text for node in tree.iter("text")]
        assert tree.get("aria-label").startswith(f"Shares of categories. {name}: ")
        assert not re.search("<(script|img)", text)
