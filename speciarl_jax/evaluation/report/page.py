"""`report.html`: one page with everything, which needs no network.

Figures are SVG in the page, images are data URIs, and the browser of images reads JSON that
lies in a script tag. Whatever a model or a data set says is escaped.
"""

import html
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from speciarl_jax.evaluation.report import frames, page_data, pairs, palette, sections
from speciarl_jax.evaluation.report.folder import Folder, run_key

_SMALL = 0.005  # differences below this make no headline
_ASSETS = pathlib.Path(__file__).parent / "assets"


def render(folder: Folder, thumbnails: Mapping[tuple[str, int], str] | None = None) -> str:
    """The page as text.

    Args:
      folder: what the run wrote.
      thumbnails: (data, image_id) -> data URI of the evaluation images; the others have a
        placeholder.
    """
    runs = sorted_runs(folder.metrics["runs"])
    keys = [run_key(run) for run in runs]
    names, asked = page_data.names_of(keys), page_data.asked_of(keys)
    entries = page_data.images(
        folder.predictions, keys, thumbnails or {}, page_data.reward_of(folder.configs)
    )
    # The browser of images shows the answers about an image's own data set.
    shown = page_data.names_of([(policy, "", prompt) for policy, prompt in asked])
    pair = pairs.opening(runs) if runs else ()
    chosen = [asked[page_data.asked_key(run)] for run in pair] or [0, 0]
    rollouts = page_data.rollouts(folder.samples)
    parts = [
        ("results", "Results", sections.scores(folder, runs, names)),
        ("shift", "Categories", sections.categories(runs, names, entries)),
        ("best-of", "Best of n", sections.best_of(runs, names)),
        ("calibration", "Calibration", sections.calibration(runs, names)),
        ("choices", "Names of predict", sections.choices(runs, names)),
        ("training", "Training", sections.training(folder.history)),
        ("samples", "Samples of training", frames.rollouts(rollouts)),
        ("classes", "Classes", sections.classes(runs, names)),
        ("images", "Images", frames.browser(entries, shown, chosen)),
    ]
    data = {
        "runs": shown,
        "sets": sorted({entry["data"] for entry in entries}),
        "categories": {
            name: {"mark": look.mark, "name": palette.name(name), "rank": palette.RANK.get(name)}
            for name, look in palette.CATEGORIES.items()
        },
        "images": entries,
        "rollouts": rollouts,
    }
    return _whole(folder, runs, [part for part in parts if part[2]], data)


def sorted_runs(runs: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """By data set and prompt, the base policy first; otherwise in their order."""
    sets = list(dict.fromkeys((run["data"], run["prompt"]) for run in runs))
    return sorted(
        runs, key=lambda run: (sets.index((run["data"], run["prompt"])), run["policy"] != "base")
    )


def _whole(folder, runs, parts, data):
    links = "".join(f'<li><a href="#{key}">{title}</a></li>' for key, title, _ in parts)
    body = "\n".join(
        f'<section id="{key}" aria-labelledby="{key}-title"><h2 id="{key}-title">{title}</h2>'
        f"{content}</section>"
        for key, title, content in parts
    )
    title = html.escape(page_data.visible(folder.name))
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; \
style-src 'unsafe-inline'; script-src 'unsafe-inline'">
<title>{title} · SpeciaRL</title>
<style>
{_colours()}{(_ASSETS / "page.css").read_text()}</style>
</head>
<body>
<a class="skip" href="#results">Skip to the results</a>
<header>
<p class="over">SpeciaRL report · {title}</p>
<h1>{_headline(runs)}</h1>
<p class="lead">{_lead(folder, runs)}</p>
{sections.legend()}
</header>
<nav aria-label="Sections"><ul>{links}</ul></nav>
<main>
{body}
</main>
<footer><p>Made by speciarl_jax from the files of the run; this page asks nothing of a network.</p>
</footer>
<script type="application/json" id="data">{page_data.script(data)}</script>
<script>
{(_ASSETS / "page.js").read_text()}</script>
</body>
</html>
"""


def _colours():
    """The palette as CSS variables."""
    lines = [
        f"--{n}: {look.colour}; --on-{n}: {look.on};" for n, look in palette.CATEGORIES.items()
    ]
    lines += [f"--policy-{i}: {colour};" for i, (colour, _, _) in enumerate(palette.POLICIES)]
    dark = [f"--policy-{i}: {colour};" for i, colour in enumerate(palette.POLICIES_IN_DARK)]
    return (
        f":root {{ {' '.join(lines)} }}\n"
        f"@media (prefers-color-scheme: dark) {{ :root {{ {' '.join(dark)} }} }}\n"
    )


def _headline(runs):
    """What became of the base, where that is the same everywhere."""
    if not runs:
        return "A training run"
    found = {_change(base["score"], run["score"]) for base, run in pairs.last_of_each(runs)}
    return found.pop() if len(found) == 1 else "How specific, and how right"


def _change(before, after):
    more, right = (after[k] - before[k] for k in ("specificity", "correctness"))
    first = _moved(more, "More specific", "Less specific", "As specific as before")
    second = _moved(right, "more often right", "less often right", "as often right")
    joint = "but" if more * right < 0 and min(abs(more), abs(right)) >= _SMALL else "and"
    return f"{first}, {joint} {second}"


def _moved(by, up, down, same):
    return same if abs(by) < _SMALL else up if by > 0 else down


def _lead(folder, runs):
    told = []
    images: dict[str, int] = {}
    for run in runs:
        images[run["data"]] = max(run["images"], images.get(run["data"], 0))
    if images:
        sets = [f"{n:,} images of {page_data.visible(data)}" for data, n in images.items()]
        told.append(html.escape(f"Greedy answers about {', '.join(sets)}."))
    changes = pairs.last_of_each(runs)
    named = page_data.names_of([run_key(run) for _, run in changes])
    moves = [
        f"from {base['score']['hm']:.3f} to {run['score']['hm']:.3f}"
        + (f" ({html.escape(name)})" if len(changes) > 1 else "")
        for (base, run), name in zip(changes, named, strict=True)
    ]
    if moves:
        told.append(f"The harmonic mean of both went {', '.join(moves)}.")
    summary = folder.summary
    if summary.get("steps") is not None and math.isfinite(summary.get("wall_seconds", 0)):
        minutes = summary.get("wall_seconds", 0) / 60
        told.append(f"Training took {summary['steps']} steps, the whole run {minutes:.1f} minutes.")
    return " ".join(told)
