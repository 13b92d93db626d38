"""The frames of the page that its script fills: samples of training, and images."""

import html
from collections.abc import Mapping, Sequence
from typing import Any

from speciarl_jax.evaluation.report import palette
from speciarl_jax.evaluation.report.page_data import escaped


def rollouts(rows: Sequence[Mapping[str, Any]]) -> str:
    """The frame that the page's script fills with the samples of a step."""
    if not rows:
        return ""
    steps = sorted({row["step"] for row in rows})
    options = "".join(f'<option value="{step}">step {step}</option>' for step in steps)
    return (
        '<p class="note">Answers that the policy learned from, with the verdict on each and the '
        "reward it earned within its group. – means that the answer took no part.</p>"
        '<div class="bar"><button type="button" class="button" id="step-prev">Earlier</button>'
        f'<label>Step <select id="step">{options}</select></label>'
        '<button type="button" class="button" id="step-next">Later</button></div>'
        '<div id="rollouts" aria-live="polite"></div>'
    )


def browser(
    entries: Sequence[Mapping[str, Any]], names: Sequence[str], chosen: Sequence[int]
) -> str:
    """The frame that the page's script fills with images.

    Args:
      entries: of `page_data.images`.
      names: of the policies and prompts, in the order of `page_data.asked_of`.
      chosen: the places of the two that are compared at first.
    """
    asked = [(str(i), name) for i, name in enumerate(names)]
    fields = [
        _select("run-a", "Compare", asked, chosen[0]),
        _select("run-b", "with", asked, chosen[1]),
        _select(
            "f-change", "Change", [("", "any"), *((w,) * 2 for w in ("better", "worse", "same"))]
        ),
        _select("f-from", "Category before", _options(palette.ORDER, palette.name)),
        _select("f-to", "Category after", _options(palette.ORDER, palette.name)),
        _select("f-class", "Class", _options(sorted({entry["label"] for entry in entries}))),
    ]
    levels = sorted({entry["level"] for entry in entries if "level" in entry})
    sets = sorted({entry["data"] for entry in entries})
    if len(levels) > 1:
        fields.append(_select("f-level", "Difficulty", _options(levels)))
    if len(sets) > 1:
        fields.append(_select("f-data", "Data set", _options(sets)))
    orders = [
        ("", "as in the data"),
        ("rise", "greatest gain"),
        ("fall", "greatest loss"),
        ("label", "class"),
    ]
    fields.append(_select("f-sort", "Order", orders))
    fields.append(
        '<div><label for="f-text">Search</label>'
        '<input id="f-text" type="search" placeholder="class or answer" autocomplete="off"></div>'
    )
    hidden = "" if entries else " hidden"
    empty = "" if entries else '<p class="empty">The run has written no answers.</p>'
    return f"""{empty}<div{hidden}>
<p class="note">Every evaluation image with its greedy answers. Arrow keys move among the
images, Page Up and Page Down turn pages, Enter opens one with all of its answers.</p>
<div class="filters" id="filters" role="search" aria-label="Filters">{"".join(fields)}</div>
<div class="bar"><span class="count" id="count" role="status" aria-live="polite"></span>
<button type="button" class="button" id="reset">Clear filters</button>
<button type="button" class="button" id="prev">Previous</button><span id="page"></span>
<button type="button" class="button" id="next">Next</button></div>
<ul class="cards" id="cards" aria-label="Images"></ul>
<p class="empty" id="empty" hidden>No image fits these filters. Clear them to see all.</p></div>
<dialog id="image" aria-labelledby="image-title"><div class="bar">
<button type="button" class="button" id="image-prev">Previous</button>
<button type="button" class="button" id="image-next">Next</button>
<button type="button" class="button" id="image-close">Close</button></div>
<div id="image-body"></div></dialog>"""


def _options(values, shown=str):
    return [("", "any"), *((value, shown(value)) for value in values)]


def _select(key: str, label: str, options: Sequence[tuple[str, str]], chosen: int = 0) -> str:
    items = "".join(
        f'<option value="{html.escape(value)}"{" selected" if i == chosen else ""}>'
        f"{escaped(shown)}</option>"
        for i, (value, shown) in enumerate(options)
    )
    return f'<div><label for="{key}">{label}</label><select id="{key}">{items}</select></div>'
