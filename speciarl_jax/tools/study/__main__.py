"""Runs a study: several methods with several seeds, aggregated, tested and drawn.

    python -m speciarl_jax.tools.study configs/studies/quickstart.py --workdir=runs/study
    python -m speciarl_jax.tools.study STUDY.py --workdir=FOLDER --dry_run
    python -m speciarl_jax.tools.study STUDY.py --workdir=FOLDER --only=binary,SFT --seeds=0,1
    python -m speciarl_jax.tools.study STUDY.py --workdir=FOLDER --report_only
    python -m speciarl_jax.tools.study STUDY.py --workdir=FOLDER --override=data.options.path=IMAGES

A study is a Python file with a function `get_study` (speciarl_jax/tools/study/definition.py). What
is missing is run, each run in processes of its own; started again, it goes on. Several of these
programs may work on one folder. After each finished run `study.json`, `table.md`, `table.csv`,
`plot.svg` and `plot.png` are written anew (docs/results.md).
"""

import json
import os
import signal
import sys
import uuid
from collections.abc import Sequence
from typing import Any

from absl import app, flags

from speciarl_jax.evaluation import bootstrap
from speciarl_jax.runtime import exit_codes
from speciarl_jax.tools.study import (
    aggregate,
    definition,
    execute,
    figure,
    launchers,
    runner,
    state,
    tables,
)
from speciarl_jax.tools.study.plan import Planner

# Of the bootstrap while runs are missing, so that writing the results costs little.
_INTERIM = 1_000


def report(plan: runner.Plan, source: str, resamples: int = bootstrap.RESAMPLES) -> dict[str, Any]:
    """Writes the results of all finished runs, and returns the content of `study.json`.

    Args:
      plan: of all rows and seeds.
      source: path of the study.
      resamples: of the bootstrap.
    """
    found = aggregate.of_study(plan, resamples=resamples)
    found = {"study": source, "command": sys.argv, **found}
    files = {
        "study.json": (json.dumps(found, indent=1) + "\n").encode(),
        "table.md": tables.markdown(found).encode(),
        "table.csv": tables.to_csv(found).encode(),
        **figure.files(found),
    }
    folder = plan.planner.folder
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        # Another program may write the same results now, so the draft has a name of its own.
        draft = folder / f".{name}_{uuid.uuid4().hex}"
        draft.write_bytes(content)
        os.replace(draft, folder / name)
    return found


def show(plan: runner.Plan) -> None:
    """Prints what would be run."""
    done = 0
    for planned in plan.runs():
        if plan.has_ended(planned):
            done += 1
            continue
        how = state.status(plan.planner.folder, planned)
        print(f"{planned.name} ({how})", *planned.shown(), sep="\n  ")
    print(f"{done} runs have ended")
    for row in plan.waiting():
        print(f"{row}: the runs of all seeds follow when the search has chosen its setting")


def main(argv: Sequence[str]) -> int:
    """Runs, and writes the results; returns 1 where a run failed."""
    given = flags.FLAGS
    if len(argv) != 2 or not given.workdir:
        raise app.UsageError("give one study and --workdir=FOLDER")
    if given.only and given.rows:
        raise app.UsageError("--only and --rows mean the same; give one of them")
    study = definition.with_overrides(definition.load(argv[1]), given.override)
    planner = Planner(study, runner.folder_of(given.workdir))
    seeds = [int(seed) for seed in given.seeds]
    plan, whole = runner.Plan(planner, given.only or given.rows, seeds), runner.Plan(planner)
    for planned in whole.runs():
        state.read(planner.folder, planned)  # refuses changed configurations before any work
    if given.dry_run:
        show(plan)
        return 0
    failed = []
    if not given.report_only:
        launcher = launchers.local
        if given.launcher == "submitit":
            launcher = launchers.Submitit(given.cluster, given.job_options)
        signal.signal(signal.SIGTERM, execute.on_sigterm)
        failed = runner.run(
            plan, launcher, lambda: report(whole, argv[1], _INTERIM), wait=given.wait
        )
    found = report(whole, argv[1])
    print("", tables.short(found), "", sep="\n")
    names = ("table.md", "table.csv", "plot.png", "study.json")
    print(*[planner.folder / name for name in names if (planner.folder / name).exists()], sep="\n")
    if failed:
        print(f"\n{len(failed)} runs failed:", *failed, sep="\n", file=sys.stderr)
    return 1 if failed else 0


def define_flags() -> None:
    flags.DEFINE_string("workdir", None, "Folder of the study: runs and results.")
    flags.DEFINE_bool("dry_run", False, "Only list what would be run.")
    flags.DEFINE_bool("report_only", False, "Run nothing; aggregate what is there.")
    flags.DEFINE_list("only", [], "Run these rows only; the results are of all.")
    flags.DEFINE_list("rows", [], "The same as --only.")
    flags.DEFINE_multi_string(
        "override", [], "KEY=VALUE, of all rows: data.options.path=FOLDER, for instance."
    )
    flags.DEFINE_list("seeds", [], "Run these seeds only; the results are of all.")
    flags.DEFINE_bool("wait", True, "Wait for runs that other programs of this study work on.")
    flags.DEFINE_enum("launcher", "local", ["local", "submitit"], "Here, or as jobs of a cluster.")
    flags.DEFINE_string("cluster", "slurm", "Of --launcher=submitit: slurm, local or debug.")
    flags.DEFINE_string("job_options", "", "Of --launcher=submitit: timeout_min=60,mem_gb=8,...")


if __name__ == "__main__":
    define_flags()
    exit_codes.run_tool("study", main)
