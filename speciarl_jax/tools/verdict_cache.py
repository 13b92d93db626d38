"""Lists, exports or prunes the verdicts in a cache.

    python -m speciarl_jax.tools.verdict_cache list --cache=runs/verdicts.sqlite
    python -m speciarl_jax.tools.verdict_cache export --cache=redis://localhost:6379/0 \\
        --out=verdicts.csv
    python -m speciarl_jax.tools.verdict_cache prune --cache=runs/verdicts.sqlite \\
        --older_than_days=90

`list` prints how many verdicts of each category every judge gave; a judge is a model, a prompt (the
start of its SHA-256) and decoding settings. With --pairs it prints the verdicts themselves.
`export` writes CSV, or JSON lines if --out ends in .jsonl. `prune` deletes. --model, --prompt,
--truth and --older_than_days select verdicts; `prune` needs at least one of them.
"""

import collections
import csv
import dataclasses
import json
import pathlib
import time
from collections.abc import Callable, Iterator, Sequence

from absl import app, flags

from speciarl_jax.runtime import exit_codes
from speciarl_jax.verifiers.category import Category
from speciarl_jax.verifiers.judge import verdict_cache
from speciarl_jax.verifiers.judge.verdict_cache import Row

_DIGEST = 12  # characters of a prompt's SHA-256 that are shown
_FILTERS = ("model", "prompt", "truth", "older_than_days")


def chosen(
    *,
    model: str | None = None,
    prompt: str | None = None,
    truth: str | None = None,
    older_than_days: float | None = None,
) -> Callable[[Row], bool]:
    """Returns a function that tells whether a verdict is selected; None selects all.

    Args:
      prompt: start of the SHA-256 of its prompt.
      truth: name of the true label, as the judge saw it.
    """
    before = None if older_than_days is None else time.time() - 86400 * older_than_days
    return lambda row: (
        (model is None or row.model == model)
        and row.prompt.startswith(prompt or "")
        and (truth is None or row.truth == truth)
        and (before is None or row.created < before)
    )


def summary(rows: Iterator[Row]) -> str:
    """Formats the number of verdicts of each category by judge."""
    counts = collections.defaultdict(collections.Counter)
    for row in rows:
        counts[row.model, row.prompt[:_DIGEST], row.settings][row.category] += 1
    verdicts = sorted((c for c in Category if c >= Category.WRONG), reverse=True)
    lines = []
    for (model, prompt, settings), count in sorted(counts.items()):
        shares = ", ".join(f"{c.name.lower()} {count[c]}" for c in verdicts)
        lines.append(f"{model}  prompt {prompt}  {settings}\n  {count.total()} verdicts: {shares}")
    return "\n".join(lines) or "no verdicts"


def line(row: Row) -> str:
    """Formats one verdict."""
    category = Category(row.category).name.lower()
    return f"{category:13} {row.truth!r} <- {row.prediction!r}  {row.model}"


def export(rows: Iterator[Row], path: pathlib.Path) -> int:
    """Writes verdicts, categories by name, as CSV or JSON lines (.jsonl); returns how many."""
    count = 0
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, [field.name for field in dataclasses.fields(Row)])
        is_json = path.suffix == ".jsonl"
        if not is_json:
            table.writeheader()
        for row in rows:
            values = dataclasses.asdict(row) | {"category": Category(row.category).name.lower()}
            file.write(json.dumps(values) + "\n") if is_json else table.writerow(values)
            count += 1
    return count


def main(argv: Sequence[str]) -> None:
    given, command = flags.FLAGS, argv[1] if len(argv) == 2 else ""
    if command not in ("list", "export", "prune") or not given.cache:
        raise app.UsageError("give list, export or prune, and --cache=FILE or --cache=redis://...")
    filters = {name: given[name].value for name in _FILTERS}
    if command == "export" and not given.out:
        raise app.UsageError("export needs --out=FILE")
    if command == "prune" and all(value is None for value in filters.values()):
        raise app.UsageError(
            "prune needs --model, --prompt, --truth or --older_than_days; to delete everything, "
            "give --older_than_days=0"
        )
    cache = verdict_cache.open_cache(given.cache, create=False)
    rows = filter(chosen(**filters), cache.rows())
    if command == "list" and given.pairs:
        for row in rows:
            print(line(row))
    elif command == "list":
        print(summary(rows))
    elif command == "export":
        print(f"{export(rows, pathlib.Path(given.out))} verdicts written to {given.out}")
    else:
        print(f"{cache.delete([row.key for row in rows])} verdicts deleted")
    cache.close()


if __name__ == "__main__":
    flags.DEFINE_string("cache", None, "Path of an SQLite file, or redis:// URL.")
    flags.DEFINE_string("model", None, "Only verdicts of this model.")
    flags.DEFINE_string("prompt", None, "Only verdicts of the prompt whose SHA-256 starts so.")
    flags.DEFINE_string("truth", None, "Only verdicts on this true label.")
    flags.DEFINE_float("older_than_days", None, "Only verdicts older than this.")
    flags.DEFINE_bool("pairs", False, "List each verdict.")
    flags.DEFINE_string("out", None, "File that `export` writes.")
    exit_codes.run_tool("verdict_cache", main, (ValueError, verdict_cache.Unavailable))
