"""`report.md`: tables of scores, what differs between runs, training, and answers that changed."""

from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from speciarl_jax.data.markdown_text import escape
from speciarl_jax.evaluation import constant_answer, metrics, remarks, results, unknown_answers
from speciarl_jax.evaluation.metrics import Score
from speciarl_jax.evaluation.report import made_with, pairs, palette, templates
from speciarl_jax.evaluation.report.folder import Folder, run_key

_ORDER = [category for category in palette.ORDER if category in palette.RANK]
_CURVE = {
    "reward": "reward/mean",
    "specific": "verify/specific",
    "less specific": "verify/less_specific",
    "generic": "verify/generic",
    "abstain": "verify/abstain",
    "wrong": "verify/wrong",
    "loss": "update/loss",
    "KL": "update/kl",
    "entropy": "update/entropy",
}
_MOST_VALIDATIONS = 60  # rows of their table


def table(scores: Mapping[str, Score]) -> str:
    """Returns a Markdown table: a row for each policy, the share of each category in per cent."""
    heads = ["policy", "correctness", "specificity", "HM", *map(palette.name, _ORDER)]
    rows = [heads]
    for name, score in scores.items():
        total = max(sum(score.histogram.values()), 1)
        values = map(templates.fixed, (score.correctness, score.specificity, score.hm))
        shares = (templates.percent(score.histogram[name] / total) for name in _ORDER)
        rows.append([name, *values, *shares])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    first, *rest = widths
    lines = [
        [row[0].ljust(first), *(c.rjust(w) for c, w in zip(row[1:], rest, strict=True))]
        for row in rows
    ]
    text = ["| " + " | ".join(line) + " |" for line in lines]
    rule = "|" + "-" * (first + 2) + "|" + "".join("-" * (w + 1) + ":|" for w in rest)
    return "\n".join([text[0], rule, *text[1:]])


def best_of(runs: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Returns a table of the HM of the best of n samples; no table where nothing was sampled.

    Args:
      runs: name, as it stands in the table -> run of `metrics.json`.
    """
    if not any(run["best_of"] for run in runs.values()):
        return []
    macros = _environment().get_template("tables.md.jinja").module
    return [macros.best_of({Markup(name): run for name, run in runs.items()}).strip()]


def difference(value: Mapping[str, Any]) -> str:
    """Returns a difference of `bootstrap.paired` with its interval and p, as Markdown."""
    low, high = value["interval"]
    p = f"p = {value['p']:.3f}" if value["p"] >= 0.001 else "p < .001"
    return Markup(f"{value['value']:+.3f} ({low:+.3f} to {high:+.3f}), {p}")


def render(content: Folder) -> str:
    """Returns the text of `report.md`: what was trained, and each data set under each prompt.

    Args:
      content: of a folder of `train` or `evaluate`.
    """
    runs, weights = content.metrics["runs"], content.metrics.get("weights")
    names = {run_key(run): "/".join(run_key(run)) for run in runs}
    return (
        _environment()
        .get_template("report.md.jinja")
        .render(
            folder=content,
            runs=runs,
            parts=[_part(content, key) for key in dict.fromkeys(run_key(r)[1:] for r in runs)],
            steps=[r for r in content.history if "update/loss" in r or "reward/mean" in r],
            curve=_CURVE,
            validations=_spread(_validations(content.history), _MOST_VALIDATIONS),
            weights=metrics.describe_weights(weights) if weights else "",
            made_with=made_with.described(made_with.facts(content), names),
        )
        .strip()
        + "\n"
    )


def _environment():
    found = templates.environment(lambda text: Markup(escape(text)))
    found.filters |= {"difference": difference, "spread": _spread}
    found.globals["short_answer"] = short_answer
    return found


def _part(content: Folder, key: tuple[str, str]) -> dict[str, Any]:
    """Collects what the report says about one data set and prompt."""
    runs = [run for run in content.metrics["runs"] if run_key(run)[1:] == key]
    keys = {run_key(run) for run in runs}

    def about(found):
        # `a` is the first run of the data set and may have another prompt.
        return [one for one in found if run_key(one["b"]) in keys]

    scores = {run["policy"]: Score(**run["score"]) for run in runs}
    scores |= constant_answer.scores(runs)
    changed = [(pairs.base_of(run, runs), run) for run in runs]
    return {
        "data": key[0],
        "prompt": key[1],
        "runs": {run["policy"]: run for run in runs},
        "scores": Markup(table({escape(name): score for name, score in scores.items()})),
        "unknown": [
            f"{run['policy']}: {said}" for run in runs if (said := unknown_answers.describe(run))
        ],
        "comparisons": about(content.metrics["comparisons"]),
        "refusals": remarks.refusals(about(content.metrics["not_compared"])),
        "changes": {
            run["policy"]: _changes(content.greedy(base), content.greedy(run))
            for base, run in changed
            if base is not None
        },
    }


def _validations(history: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Lists step, name and scores of each set at each validation."""
    found = []
    for row in history:
        for name in [key.split("/")[1] for key in row if key.endswith("/hm")]:
            scores = {m: row[f"validation/{name}/{m}"] for m in metrics.MEASURES}
            found.append({"step": row["step"], "name": name, **scores})
    return found


def _changes(before: results.Lines, after: results.Lines) -> dict[str, Any]:
    """Lists (line before, line after) of images whose verdict rose, and of those where it fell."""
    lines, rank = results.paired_lines(before, after), palette.RANK
    moves = [
        (rank[new["categories"][0]] - rank[old["categories"][0]], old, new) for old, new in lines
    ]
    found = {"better": [move[1:] for move in moves if move[0] > 0]}
    found["worse"] = [move[1:] for move in moves if move[0] < 0]
    return {"total": len(lines), "moves": found}


def _spread(rows: Sequence[Any], most: int) -> Sequence[Any]:
    """Picks at most `most` rows, spread over the whole list."""
    return rows[:: max(1, len(rows) // most)][:most]


def short_answer(response: str, most: int = 60) -> str:
    """Returns the text between the answer tags, or the end of a response that has none.

    Args:
      most: characters that are kept.
    """
    if "<answer>" not in response:
        return response[-most:]
    answer = response.split("<answer>")[-1].split("</answer>")[0].strip()
    return answer if len(answer) <= most else answer[: most - 1] + "…"
