"""`report.md`: tables of scores, what differs between runs, training, and answers that changed."""

from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from speciarl_jax.data.markdown_text import escape
from speciarl_jax.evaluation import (
    comparisons,
    constant_answer,
    metrics,
    outcome,
    pairs,
    remarks,
    unknown_answers,
)
from speciarl_jax.evaluation.metrics import Score
from speciarl_jax.evaluation.pairs import run_key
from speciarl_jax.evaluation.report import breakdown, made_with, palette, templates
from speciarl_jax.evaluation.report.folder import Folder

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
    heads = ["policy", "correctness", "specificity", "HM", *templates.SHARES[:-1]]
    rows = [heads]
    for name, score in scores.items():
        values = map(templates.fixed, (score.correctness, score.specificity, score.hm))
        rows.append([name, *values, *templates.shares(score.histogram)])
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


def difference(value: Mapping[str, Any] | None) -> str:
    """Returns a difference of `bootstrap.paired` with its interval and p, as Markdown."""
    return Markup(outcome.describe(value)) if value else ""


def render(content: Folder, domains: Mapping[str, Mapping[str, str]] | None = None) -> str:
    """Returns the text of `report.md`: what was trained, and each data set under each prompt.

    Args:
      content: of a folder of `train` or `evaluate`.
      domains: data set -> label id -> its group in the label tree.
    """
    runs, weights = content.metrics["runs"], content.metrics.get("weights")
    names = {run_key(run): "/".join(run_key(run)) for run in runs}
    return (
        _environment()
        .get_template("report.md.jinja")
        .render(
            folder=content,
            runs=runs,
            parts=[
                _part(content, key, (domains or {}).get(key[0]))
                for key in dict.fromkeys(run_key(r)[1:] for r in runs)
            ],
            headline=outcome.headline(content.metrics),
            outcomes=outcome.outcomes(content.metrics),
            steps=[r for r in content.history if "update/loss" in r or "reward/mean" in r],
            curve=_CURVE,
            warned=remarks.warned(content.history),
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
    found.filters["evidence"] = lambda test: Markup(outcome.evidence(test))
    found.globals |= {
        "short_answer": short_answer,
        "outcome": outcome,
        "measures": metrics.MEASURES,
    }
    return found


def _part(
    content: Folder, key: tuple[str, str], domains: Mapping[str, str] | None
) -> dict[str, Any]:
    """Collects what the report says about one data set and prompt."""
    runs = [run for run in content.metrics["runs"] if run_key(run)[1:] == key]
    keys = {run_key(run) for run in runs}

    def about(found):
        # `a` is the first run of the data set and may have another prompt.
        return [one for one in found if run_key(one["b"]) in keys]

    tests = about(content.metrics["comparisons"])
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
        "comparisons": tests,
        "image_sets": remarks.image_sets({"runs": content.metrics["runs"], "comparisons": tests}),
        "breakdowns": breakdown.tables(content, *key, domains),
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
            scores = {m: row.get(f"validation/{name}/{m}") for m in metrics.MEASURES}
            if None not in scores.values():
                found.append({"step": row["step"], "name": name, **scores})
    return found


def _changes(before: comparisons.Lines, after: comparisons.Lines) -> dict[str, Any]:
    """Lists (line before, line after) of images whose verdict rose, and of those where it fell."""
    lines, rank = comparisons.paired_lines(before, after), palette.RANK
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
