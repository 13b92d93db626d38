"""The figures of the page, as SVG that follows its colours and its width.

All take the structures of `metrics.json`, of `metrics.jsonl`, or counts; none reads a file.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from speciarl_jax.evaluation.report import pairs, palette, svg

Run = Mapping[str, Any]


def _paint(number: int) -> dict[str, str]:
    """Colour of policy `number`."""
    return {"fill": f"var(--policy-{number % len(palette.POLICIES)})"}


def _stroke(number: int) -> dict[str, Any]:
    """Colour and dashes of the line of policy `number`."""
    _, dashes, _ = palette.policy_look(number)
    return {
        "stroke": f"var(--policy-{number % len(palette.POLICIES)})",
        "stroke_dasharray": dashes or None,
        "class_": "line",
    }


def _category(name: str) -> dict[str, str]:
    return {"fill": f"var(--{name})"}


def trade_off(runs: Sequence[Run], names: Sequence[str]) -> str:
    """Specificity against correctness, with intervals and contours of equal HM."""
    points = [(run["score"]["correctness"], run["score"]["specificity"]) for run in runs]
    limits = [_limits([p[axis] for p in points]) for axis in (0, 1)]
    frame = svg.Frame(48, 28, 376, 300, *limits[0], *limits[1])
    parts = [
        frame.axes(
            svg.ticks(*limits[0], 5), svg.ticks(*limits[1], 5), "correctness", "specificity"
        ),
        _contours(frame),
    ]
    for run, (x, y) in zip(runs, points, strict=True):
        base = pairs.base_of(run, runs)
        if base is not None:
            before = (base["score"]["correctness"], base["score"]["specificity"])
            line = [(frame.x(a), frame.y(b)) for a, b in (before, (x, y))]
            parts.append(svg.path(line, class_="step"))
    for number, (run, (x, y)) in enumerate(zip(runs, points, strict=True)):
        intervals = run.get("intervals") or {}
        for key, cross in (("correctness", True), ("specificity", False)):
            if key in intervals:
                low, high = intervals[key]
                ends = [(low, y), (high, y)] if cross else [(x, low), (x, high)]
                line = [(frame.x(a), frame.y(b)) for a, b in ends]
                parts.append(svg.path(line, class_="interval", stroke=_paint(number)["fill"]))
        parts.append(svg.marker(frame.x(x), frame.y(y), number, 6, class_="dot", **_paint(number)))
        left = x > (frame.low_x + frame.high_x) / 2
        # Names of points that nearly coincide go above and below by turns.
        near = 0.06 * (frame.high_y - frame.low_y)
        below = number % 2 == 1 and abs(y - points[number - 1][1]) < near
        parts.append(
            svg.text(
                frame.x(x) + (-11 if left else 11),
                frame.y(y) + (20 if below else -9),
                names[number],
                class_="mark",
                text_anchor="end" if left else "start",
            )
        )
    spoken = "; ".join(
        f"{name}: correctness {x:.3f}, specificity {y:.3f}"
        for name, (x, y) in zip(names, points, strict=True)
    )
    return svg.image(440, 376, f"Specificity against correctness. {spoken}", *parts)


def _limits(values: Sequence[float]) -> tuple[float, float]:
    """Round limits in [0, 1] around values, at least .2 apart."""
    low, high = min(values), max(values)
    spare = max(0.04, (0.2 - (high - low)) / 2)
    low, high = max(0.0, low - spare), min(1.0, high + spare)
    return (max(0.0, round(low * 20 - 0.4) / 20), min(1.0, round(high * 20 + 0.4) / 20))


def _contours(frame: svg.Frame) -> str:
    """Lines on which the harmonic mean is .05, .1, ... .95."""
    parts = []
    for step in range(1, 20):
        hm = step / 20
        line = []
        for i in range(201):
            x = frame.low_x + (frame.high_x - frame.low_x) * i / 200
            # hm = 2 x y / (x + y), solved for y.
            y = hm * x / (2 * x - hm) if 2 * x > hm else -1
            if frame.low_y <= y <= frame.high_y:
                line.append((frame.x(x), frame.y(y)))
        if len(line) < 2:
            continue
        parts.append(svg.path(line, class_="contour"))
        x, y = line[-1]
        if x > frame.left + 60:
            words = f"HM {hm:.2f}".replace("0.", ".")
            parts.append(svg.text(x - 6, y - 5, words, class_="faint", text_anchor="end"))
    return "".join(parts)


def shares(runs: Sequence[Run], names: Sequence[str]) -> str:
    """A stacked bar of the categories of each policy."""
    gap, height = 58, 30
    parts = []
    for row, (run, name) in enumerate(zip(runs, names, strict=True)):
        top = 22 + row * gap
        parts.append(svg.text(0, top - 7, name, class_="mark"))
        total, x = _total(run), 0.0
        for category in palette.ORDER:
            share = run["score"]["histogram"].get(category, 0) / total
            if not share:
                continue
            width = 440 * share
            title = svg.element("title", f"{palette.name(category)}: {100 * share:.1f}%")
            box = svg.element(
                "rect", title, x=x, y=top, width=width, height=height, class_="part",
                **_category(category),
            )  # fmt: skip
            parts.append(box)
            if width > 34:
                mark = palette.CATEGORIES[category].mark
                parts.append(
                    svg.text(
                        x + width / 2,
                        top + 20,
                        f"{mark} {100 * share:.0f}%" if width > 64 else mark,
                        class_="on",
                        text_anchor="middle",
                        style=f"fill:var(--on-{category})",
                    )
                )
            x += width
    spoken = "; ".join(f"{name}: {_spoken(run)}" for run, name in zip(runs, names, strict=True))
    return svg.image(440, 22 + gap * len(runs) - 12, f"Shares of categories. {spoken}", *parts)


def _total(run: Run) -> int:
    return max(sum(run["score"]["histogram"].values()), 1)


def _spoken(run: Run) -> str:
    counts = run["score"]["histogram"]
    return ", ".join(
        f"{palette.name(c)} {100 * counts[c] / _total(run):.0f}%" for c in counts if counts[c]
    )


def shift(counts: Mapping[tuple[str, str], int], before: str, after: str) -> str:
    """Which category became which, as bands from left to right.

    Args:
      counts: (category before, category after) -> images.
      before: name of the first policy.
      after: name of the second.
    """
    total = max(sum(counts.values()), 1)
    top, height, gap = 30, 380, 7
    used = [[c for c in palette.ORDER if any(k[side] == c for k in counts)] for side in (0, 1)]
    scale = (height - gap * (max(map(len, used)) - 1)) / total
    place: list[dict[str, float]] = [{}, {}]
    size: list[dict[str, int]] = [{}, {}]
    for side in (0, 1):
        y = float(top)
        for category in used[side]:
            size[side][category] = sum(n for k, n in counts.items() if k[side] == category)
            place[side][category] = y
            y += size[side][category] * scale + gap
    left, right, wide = 116, 312, 12
    parts = [
        svg.text(left + wide, 16, before, class_="mark", text_anchor="end"),
        svg.text(right, 16, after, class_="mark"),
        *_bands(counts, place, used, scale, left + wide, right),
    ]
    for side, x in ((0, left), (1, right)):
        for category in used[side]:
            y, n = place[side][category], size[side][category]
            box = {"x": x, "y": y, "width": wide, "height": max(n * scale, 1.0)}
            parts.append(svg.element("rect", class_="part", **box, **_category(category)))
            words = f"{palette.CATEGORIES[category].mark} {palette.name(category)}"
            at, anchor = (x - 7, "end") if side == 0 else (x + wide + 7, "start")
            middle = y + n * scale / 2
            tall = n * scale > 26
            parts.append(
                svg.text(
                    at,
                    middle + (-1 if tall else 4),
                    words if tall else f"{words} {100 * n / total:.0f}%",
                    class_="tick strong",
                    text_anchor=anchor,
                )
            )
            if tall:
                share = f"{100 * n / total:.1f}%"
                parts.append(svg.text(at, middle + 14, share, class_="tick", text_anchor=anchor))
    spoken = ", ".join(
        f"{n} from {palette.name(a)} to {palette.name(b)}" for (a, b), n in counts.items()
    )
    return svg.image(440, 424, f"Change of categories, images: {spoken}", *parts)


def _bands(counts, place, used, scale, left, right):
    """The bands between the two columns, in the colour of where they come from."""
    start = {side: dict(place[side]) for side in (0, 1)}
    middle = (left + right) / 2
    for a in used[0]:
        for b in used[1]:
            n = counts.get((a, b), 0)
            if not n:
                continue
            h, y0, y1 = n * scale, start[0][a], start[1][b]
            start[0][a] += h
            start[1][b] += h
            d = (
                f"M{left} {y0:.1f}C{middle} {y0:.1f} {middle} {y1:.1f} {right} {y1:.1f}"
                f"v{h:.1f}C{middle} {y1 + h:.1f} {middle} {y0 + h:.1f} {left} {y0 + h:.1f}z"
            )
            same = "band same" if a == b else "band"
            words = f"{n} images: {palette.name(a)} to {palette.name(b)}"
            yield svg.element("path", svg.element("title", words), d=d, class_=same, **_category(a))


def best_of(runs: Sequence[Run], names: Sequence[str], measure: str, title: str) -> str:
    """A measure of the best of n samples against n, which doubles from tick to tick."""
    chosen = [(i, run["best_of"]) for i, run in enumerate(runs) if run.get("best_of")]
    counts = sorted({row["n"] for _, rows in chosen for row in rows})
    values = [row[measure] for _, rows in chosen for row in rows]
    low, high = _limits(values)
    place = {n: i for i, n in enumerate(counts)}
    frame = svg.Frame(40, 30, 286, 170, -0.15, max(len(counts) - 0.85, 0.15), low, high)
    axes = frame.axes(
        range(len(counts)), svg.ticks(low, high), "samples", title, lambda i: str(counts[int(i)])
    )
    parts = [axes]
    for number, rows in chosen:
        line = [(frame.x(place[row["n"]]), frame.y(row[measure])) for row in rows]
        parts.append(svg.path(line, **_stroke(number)))
        parts += [svg.marker(x, y, number, 3.4, class_="dot", **_paint(number)) for x, y in line]
    spoken = "; ".join(
        f"{names[number]}: " + ", ".join(f"{row['n']}: {row[measure]:.3f}" for row in rows)
        for number, rows in chosen
    )
    return svg.image(340, 244, f"{title} of the best of n samples. {spoken}", *parts)


def calibration(runs: Sequence[Run], names: Sequence[str]) -> str:
    """Share of correct answers against the agreement of samples; a larger dot is more images."""
    frame = svg.Frame(44, 30, 376, 280, 0, 1, 0, 1)
    fifths = [i / 5 for i in range(6)]
    parts = [
        frame.axes(fifths, fifths, "agreement of the samples", "share of correct answers"),
        svg.path([(frame.x(0), frame.y(0)), (frame.x(1), frame.y(1))], class_="step"),
    ]
    spoken = []
    for number, run in enumerate(runs):
        rows = [row for row in run.get("calibration") or () if row["images"]]
        if not rows:
            continue
        most = max(row["images"] for row in rows)
        line = [(frame.x(row["agreement"]), frame.y(row["correctness"])) for row in rows]
        parts.append(svg.path(line, **_stroke(number)))
        for (x, y), row in zip(line, rows, strict=True):
            size = 2.5 + 6 * (row["images"] / most) ** 0.5
            words = (
                f"{names[number]}: {row['images']} images, agreement {row['agreement']:.2f}, "
                f"correct {row['correctness']:.2f}"
            )
            spoken.append(words)
            dot = svg.marker(x, y, number, size, class_="dot", **_paint(number))
            parts.append(svg.element("g", svg.element("title", svg.html.escape(words)), dot))
    return svg.image(440, 360, "Calibration. " + "; ".join(spoken), *parts)


def curve(history: Sequence[Mapping[str, float]], key: str, title: str) -> str:
    """A measure against the step: what was measured, and its mean over neighbouring steps."""
    points = [(row["step"], row[key]) for row in history if _finite(row.get(key))]
    steps, values = [p[0] for p in points], [p[1] for p in points]
    low, high = min(values), max(values)
    if high - low < 1e-9:
        low, high = low - 0.5 * (abs(low) or 1), high + 0.5 * (abs(high) or 1)
    frame = _over_steps(steps, low - 0.06 * (high - low), high + 0.06 * (high - low))
    line = [(frame.x(s), frame.y(v)) for s, v in points]
    smooth = [(frame.x(s), frame.y(v)) for s, v in zip(steps, smoothed(values), strict=True)]
    axes = frame.axes(_whole(steps), svg.ticks(frame.low_y, frame.high_y), "step", title)
    words = f"{title} from {values[0]:.4g} at step {steps[0]} to {values[-1]:.4g} at {steps[-1]}"
    dots = [svg.element("circle", cx=x, cy=y, r=1.8, class_="raw-dot") for x, y in line]
    raw = dots if len(line) < 40 else [svg.path(line, class_="raw")]
    return svg.image(340, 220, words, axes, *raw, svg.path(smooth, class_="line main"))


def category_shares(history: Sequence[Mapping[str, float]]) -> str:
    """Shares of the categories among the sampled answers, stacked, against the step."""
    rows = [row for row in history if "verify/specific" in row]
    steps = [row["step"] for row in rows]
    frame = _over_steps(steps, 0, 1)
    floor = [0.0] * len(rows)
    parts = []
    for category in reversed(palette.ORDER):
        share = smoothed([row.get(f"verify/{category}", 0.0) for row in rows])
        if max(share) <= 0:
            continue
        roof = [min(a + b, 1.0) for a, b in zip(floor, share, strict=True)]
        up = [(frame.x(s), frame.y(v)) for s, v in zip(steps, roof, strict=True)]
        down = [(frame.x(s), frame.y(v)) for s, v in zip(steps, floor, strict=True)]
        title = svg.element("title", palette.name(category))
        area = " L".join(f"{x:.1f} {y:.1f}" for x, y in [*up, *reversed(down)])
        parts.append(
            svg.element("path", title, d=f"M{area}z", class_="part", **_category(category))
        )
        wide = max(range(len(rows)), key=lambda i: roof[i] - floor[i])
        if roof[wide] - floor[wide] > 0.08:
            x = min(max(frame.x(steps[wide]), frame.left + 14), frame.left + frame.width - 14)
            y = frame.y((roof[wide] + floor[wide]) / 2) + 4
            mark, on = palette.CATEGORIES[category].mark, f"fill:var(--on-{category})"
            parts.append(svg.text(x, y, mark, class_="on", text_anchor="middle", style=on))
        floor = roof
    axes = frame.axes(_whole(steps), [0, 0.25, 0.5, 0.75, 1], "step", "share of sampled answers")
    return svg.image(340, 220, "Shares of the categories over training", axes, *parts)


def smoothed(values: Sequence[float]) -> list[float]:
    """Means over windows of about a tenth of the curve, shorter at its ends."""
    reach = len(values) // 20
    parts = [values[max(0, i - reach) : i + reach + 1] for i in range(len(values))]
    return [sum(part) / len(part) for part in parts]


def _over_steps(steps: Sequence[float], low: float, high: float) -> svg.Frame:
    first, last = steps[0], steps[-1]
    if first == last:
        first, last = first - 0.5, last + 0.5
    return svg.Frame(52, 30, 278, 146, first, last, low, high)


def _whole(steps: Sequence[float]) -> list[float]:
    """Ticks at whole steps."""
    found = [t for t in svg.ticks(steps[0], steps[-1], 5) if t == int(t)]
    return found or [steps[0]]


def _finite(value: Any) -> bool:
    return isinstance(value, int | float) and abs(value) < float("inf")
