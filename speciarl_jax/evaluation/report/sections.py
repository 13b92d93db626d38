"""The sections of the page as HTML; an empty string where there is nothing to show."""

import html
from collections.abc import Mapping, Sequence
from typing import Any

from speciarl_jax.evaluation import results
from speciarl_jax.evaluation.report import charts, page_data, pairs, palette, svg
from speciarl_jax.evaluation.report.folder import run_key
from speciarl_jax.evaluation.report.page_data import escaped

_MEASURES = {"correctness": "correctness", "specificity": "specificity", "hm": "HM"}
Run = Mapping[str, Any]


def legend() -> str:
    """The categories with colour and mark, once at the top of the page."""
    return (
        '<ul class="legend" aria-label="Categories">'
        + "".join(f"<li>{chip(name)}</li>" for name in palette.ORDER)
        + "</ul>"
    )


def chip(category: str) -> str:
    """A category as a coloured word."""
    look = palette.CATEGORIES[category]
    style = f"background:var(--{category});color:var(--on-{category})"
    words = f"{look.mark} {palette.name(category)}"
    return f'<span class="chip {category}" style="{style}">{words}</span>'


def _swatch(number: int) -> str:
    dot = svg.marker(8.0, 8.0, number, 5.5, fill=f"var(--policy-{number % len(palette.POLICIES)})")
    return f'<svg class="swatch" viewBox="0 0 16 16" aria-hidden="true">{dot}</svg>'


def _runs_legend(names: Sequence[str]) -> str:
    items = "".join(f"<li>{_swatch(i)}{escaped(name)}</li>" for i, name in enumerate(names))
    return f'<ul class="legend" aria-label="Policies">{items}</ul>'


def table(heads: Sequence[str], rows: Sequence[Sequence[str]], class_: str = "") -> str:
    """A table of cells that are markup already; the first of a row is its head."""
    head = "".join(f'<th scope="col">{cell}</th>' for cell in heads)
    body = "".join(
        f'<tr><th scope="row">{first}</th>{"".join(f"<td>{cell}</td>" for cell in rest)}</tr>'
        for first, *rest in rows
    )
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="Table">'
        f'<table class="{class_}"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
    )


def _figure(drawing: str, caption: str = "") -> str:
    words = f"<figcaption>{caption}</figcaption>" if caption else ""
    return f"<figure>{drawing}{words}</figure>"


def scores(folder: Any, runs: Sequence[Run], names: Sequence[str]) -> str:
    """The headline table against the base, the tests, and the trade-off."""
    if not runs:
        return ""
    rows = []
    for number, (run, name) in enumerate(zip(runs, names, strict=True)):
        base = pairs.base_of(run, runs)
        cells = [f"{_swatch(number)}{escaped(name)}"]
        for key in _MEASURES:
            cells.append(_measure(run, base, key))
        cells += [f"{100 * run[key]:.1f}%" for key in ("abstain", "unparsed", "unverified")]
        rows.append([*cells, f"{run['images']:,}"])
    heads = ["policy", *_MEASURES.values(), "abstained", "unparsed", "unverified", "images"]
    known = any(run.get("intervals") for run in runs)
    note = (
        "Correctness: share of answers that are neither wrong, abstained nor unparsed. "
        "Specificity: mean weight of the correct ones. HM: their harmonic mean. Below a value its "
        "difference from the base"
        + (" and its 95% interval (bootstrap over images)." if known else ".")
    )
    caption = "Up and to the right is better; dotted lines join points of equal harmonic mean." + (
        " Bars are 95% intervals." if known else ""
    )
    return (
        table(heads, rows, "headline")
        + f'<p class="note">{note}</p><div class="two">'
        + _figure(charts.trade_off(runs, names), caption)
        + f"<div>{comparisons(folder.metrics['comparisons'])}"
        + not_compared(folder.metrics["not_compared"])
        + f"{open_world(runs, names)}</div></div>"
    )


def _measure(run: Run, base: Run | None, key: str) -> str:
    value = f"<b>{run['score'][key]:.3f}</b>"
    if base is not None:
        value += f"<small>{signed(run['score'][key] - base['score'][key])}</small>"
    if key in (run.get("intervals") or {}):
        low, high = run["intervals"][key]
        value += f'<span class="range">{low:.3f}–{high:.3f}</span>'
    return value


def signed(value: float) -> str:
    """With its sign, and a true minus."""
    return f"{value:+.3f}".replace("-", "−")


def _range(interval: Sequence[float]) -> str:
    return "{:.3f} to {:.3f}".format(*interval).replace("-", "−")


def comparisons(found: Sequence[Mapping[str, Any]]) -> str:
    """Differences between runs, with intervals and p values."""
    keys = list(dict.fromkeys(run_key(one[side]) for one in found for side in ("a", "b")))
    names = dict(zip(keys, page_data.names_of(keys), strict=True))
    rows = []
    for one in found:
        sides = [html.escape(names[run_key(one[side])]) for side in ("a", "b")]
        for key, value in one["differences"].items():
            interval, p = value.get("interval"), value.get("p")
            rows.append(
                [
                    f"{sides[0]}\u00a0→ {sides[1]}",
                    escaped(_MEASURES.get(key, key)),
                    signed(value["value"]),
                    _range(interval) if interval else "",
                    "" if p is None else "&lt; .001" if p < 0.001 else f"{p:.3f}",
                ]
            )
    if not rows:
        return ""
    heads = ["comparison", "measure", "difference", "95% interval", "p"]
    return f"<h3>Differences, paired over images</h3>{table(heads, rows)}"


def not_compared(found: Sequence[Mapping[str, Any]]) -> str:
    """Why pairs of runs have no difference."""
    return "".join(f'<p class="note">{escaped(said)}</p>' for said in results.refusals(found))


def open_world(runs: Sequence[Run], names: Sequence[str]) -> str:
    """The open-world metrics, where they were measured."""
    measured = [
        (n, r["open_world"]) for n, r in zip(names, runs, strict=True) if r.get("open_world")
    ]
    if not measured:
        return ""
    keys = [
        key
        for key in dict.fromkeys(key for _, found in measured for key in found)
        if any(isinstance(found.get(key), int | float) for _, found in measured)
    ]
    rows = [
        [escaped(name), *(f"{found[k]:.3f}" if k in found else "" for k in keys)]
        for name, found in measured
    ]
    heads = ["policy", *(escaped(palette.name(key)) for key in keys)]
    return f"<h3>Open-world metrics</h3>{table(heads, rows)}"


def categories(
    runs: Sequence[Run], names: Sequence[str], entries: Sequence[Mapping[str, Any]]
) -> str:
    """Shares of each policy, and for each data set and prompt what became of each category."""
    if not runs:
        return ""
    parts = [_figure(charts.shares(runs, names), "Every greedy answer, by its category.")]
    shifts = pairs.last_of_each(runs)
    titles = page_data.names_of([run_key(run) for _, run in shifts])
    for (base, run), title in zip(shifts, titles, strict=True):
        drawing = _shift(base, run, runs, entries)
        if drawing:
            head = f"<h3>{escaped(title)}</h3>" if len(shifts) > 1 else ""
            parts.append(head + drawing)
    return f'<div class="two">{"".join(f"<div>{part}</div>" for part in parts)}</div>'


def _shift(base: Run, run: Run, runs: Sequence[Run], entries: Sequence[Mapping[str, Any]]) -> str:
    """What became of each category from the base to a run; empty where no image is known."""
    asked = page_data.asked_of([run_key(one) for one in runs])
    counts = page_data.changes(
        [entry for entry in entries if entry["data"] == run["data"]],
        asked[page_data.asked_key(base)],
        asked[page_data.asked_key(run)],
    )
    if not counts:
        return ""
    rank = palette.RANK
    moves = [(rank[b] - rank[a], n) for (a, b), n in counts.items() if {a, b} <= rank.keys()]
    better, worse = (sum(n for by, n in moves if by * s > 0) for s in (1, -1))
    same = sum(n for by, n in moves if by == 0)
    caption = (
        f"The same images before and after: {better:,} became better, {worse:,} worse, "
        f"{same:,} stayed as they were (paler). A band has the colour of where it comes from."
    )
    ends = [page_data.visible(one["policy"]) for one in (base, run)]
    return _figure(charts.shift(counts, *ends), caption) + _matrix(counts)


def _matrix(counts: Mapping[tuple[str, str], int]) -> str:
    used = [c for c in palette.ORDER if any(c in pair for pair in counts)]
    rows = [[chip(a), *(f"{counts.get((a, b), 0) or '·'}" for b in used)] for a in used]
    heads = ["before ↓, after →", *map(chip, used)]
    return f"<details><summary>The numbers</summary>{table(heads, rows)}</details>"


def best_of(runs: Sequence[Run], names: Sequence[str]) -> str:
    """What the policy could have said: the best of n samples."""
    if not any(run.get("best_of") for run in runs):
        return ""
    drawings = "".join(
        _figure(charts.best_of(runs, names, key, title)) for key, title in _MEASURES.items()
    )
    rows = [
        [escaped(name), str(row["n"]), *(f"{row[key]:.3f}" for key in _MEASURES)]
        for name, run in zip(names, runs, strict=True)
        for row in run.get("best_of") or ()
    ]
    numbers = table(["policy", "samples", *_MEASURES.values()], rows)
    return (
        '<p class="note">The best answer among n samples about each image: what the policy '
        "knows, whether or not it says so first.</p>"
        f'{_runs_legend(names)}<div class="small">{drawings}</div>'
        f"<details><summary>The numbers</summary>{numbers}</details>"
    )


def calibration(runs: Sequence[Run], names: Sequence[str]) -> str:
    """Whether agreement among samples foretells correctness."""
    if not any(row["images"] for run in runs for row in run.get("calibration") or ()):
        return ""
    rows = [
        [
            escaped(name),
            f"{row['low']:.2f} to {row['high']:.2f}",
            f"{row['images']:,}",
            f"{row['agreement']:.3f}",
            f"{row['correctness']:.3f}",
        ]
        for name, run in zip(names, runs, strict=True)
        for row in run.get("calibration") or ()
        if row["images"]
    ]
    heads = ["policy", "agreement from, to", "images", "mean agreement", "correct"]
    caption = (
        "On the grey line agreement is the chance of being right; below it the policy is too sure."
    )
    return (
        '<p class="note">Images sorted by how far the samples agree on one answer, and how often '
        "that answer is right.</p>"
        f'{_runs_legend(names)}<div class="two">{_figure(charts.calibration(runs, names), caption)}'
        f"</div><details><summary>The numbers</summary>{table(heads, rows)}</details>"
    )


def choices(runs: Sequence[Run], names: Sequence[str]) -> str:
    """What the names are worth that `predict` would give at each confidence."""
    keys = ("named", "agreement", "correctness", "specificity")
    rows = [
        [
            escaped(name),
            f"{row['confidence']:.1f}",
            *("" if row[key] is None else f"{row[key]:.3f}" for key in keys),
        ]
        for name, run in zip(names, runs, strict=True)
        for row in run.get("choices") or ()
    ]
    if not rows:
        return ""
    heads = ["policy", "confidence", "images named", "mean support", "correct", "specificity"]
    return (
        '<p class="note">The most specific name that so large a share of the samples supports, as '
        "python -m speciarl_jax.predict --confidence gives it: how many images get one, and what "
        f"these names are worth.</p>{table(heads, rows)}"
    )


_CURVES = {
    "reward/mean": "mean reward",
    "update/kl": "KL to the base, nats a token",
    "update/entropy": "entropy, nats a token",
    "update/loss": "loss",
    "reward/zero_std_groups": "groups without signal",
    "rollout/completion_length": "length of answers, tokens",
    "update/grad_norm": "norm of the gradient",
    "update/clip_frac": "share of clipped tokens",
    "verify/unjudged": "share without a verdict",
}


def training(history: Sequence[Mapping[str, float]]) -> str:
    """The curves of training."""
    if not history:
        return ""
    drawings = []
    if any("verify/specific" in row for row in history):
        drawings.append(charts.category_shares(history))
    for key, title in _CURVES.items():
        values = [row[key] for row in history if key in row]
        # A curve that lies at zero throughout says nothing, unless it is what was asked about.
        if any(values) and any(abs(value) < float("inf") for value in values):
            drawings.append(charts.curve(history, key, title))
    figures = "".join(map(_figure, drawings))
    first, last = history[0]["step"], history[-1]["step"]
    return (
        f'<p class="note">Steps {first} to {last}. Faint: what was measured; line: its mean over '
        f'neighbouring steps.</p><div class="small">{figures}</div>'
    )


def classes(runs: Sequence[Run], names: Sequence[str]) -> str:
    """A row a class, with every policy's scores; sorted by any column."""
    labels = sorted({label for run in runs for label in run.get("by_class") or ()})
    if not labels:
        return ""
    heads = ["class", "images"]
    heads += [f"{escaped(n)}<br>{m}" for m in _MEASURES.values() for n in names]
    head = "".join(
        f'<th scope="col"{" aria-sort=ascending" if not i else ""}>'
        f'<button type="button">{cell}</button></th>'
        for i, cell in enumerate(heads)
    )
    body = []
    for label in labels:
        found = [(run.get("by_class") or {}).get(label) for run in runs]
        images = max(one["images"] for one in found if one)
        cells = [f'<th scope="row"><bdi>{escaped(label)}</bdi></th><td>{images}</td>']
        for key in _MEASURES:
            for one in found:
                value = -1 if one is None else one[key]
                shown = "" if one is None else f"{value:.2f}"
                cells.append(f'<td data-value="{value}">{shown}</td>')
        body.append(f"<tr>{''.join(cells)}</tr>")
    return (
        f'<p class="note">{len(labels)} classes. Choose a head to sort by it.</p>'
        '<div class="scroll tall" tabindex="0" role="region" aria-label="Scores of the classes">'
        f'<table class="sorts"><thead><tr>{head}</tr></thead><tbody>{"".join(body)}</tbody></table>'
        "</div>"
    )
