"""What has become of a run: `study_run.json` in its workdir, and the results beside it."""

import functools
import importlib.metadata
import json
import os
import pathlib
import platform
import subprocess
import time
from collections.abc import Mapping
from typing import Any

from speciarl_jax.evaluation import predictions, results
from speciarl_jax.evaluation.pairs import run_key
from speciarl_jax.runtime import jsonl, renamed
from speciarl_jax.tools.study import plan
from speciarl_jax.tools.study.plan import Planned

FILE = "study_run.json"
FINISHED, FAILED, STARTED, MISSING = "finished", "failed", "started", "missing"
_PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy", "transformers", "tokenizers")


def read(folder: pathlib.Path, planned: Planned) -> dict[str, Any]:
    """Reads what is noted about a run; empty where nothing is.

    Raises:
      ValueError: it was made with another configuration, or the file is damaged.
    """
    workdir = folder / planned.folder
    remedy = f"delete the folder {workdir}, and start again"
    noted = jsonl.read_object(workdir / FILE, remedy)
    if not noted and any(FILE not in path.name for path in workdir.glob("*.json*")):
        # Another program may have begun the run meanwhile; it writes this file before all others.
        noted = jsonl.read_object(workdir / FILE, remedy)
        if not noted:
            raise ValueError(
                f"{workdir} holds results that no study wrote (there is no {FILE}); delete or move "
                "that folder, or give another --workdir"
            )
    if not noted:
        return {}
    now = json.loads(json.dumps(planned.config))
    # Keys that this package has got since then count as what it did before.
    was = renamed.flat_config(noted["config"])
    was = {key: value for key, value in was.items() if key in now or key in noted["config"]}
    if changed := plan.differences(was, now):
        raise ValueError(
            f"{planned.name}: {workdir} was made with another configuration (there -> now):\n"
            f"{changed}\nput the old values back; or delete that folder, and it runs anew; or give "
            "another --workdir"
        )
    return noted


def status(folder: pathlib.Path, planned: Planned) -> str:
    """Says whether a run is `FINISHED`, `FAILED`, `STARTED` (and may be resumed) or `MISSING`.

    A finished run has the results that it should have, with their provenance.

    Raises:
      ValueError: as for `read`.
    """
    noted = read(folder, planned)
    if not noted:
        return MISSING
    if noted["status"] == FINISHED and not _complete(folder / planned.folder, planned):
        return STARTED
    return noted["status"]


def _complete(workdir: pathlib.Path, planned: Planned) -> bool:
    known = predictions.read_provenance(workdir)
    found = jsonl.read_object(workdir / results.FILE, f"delete the folder {workdir}")
    scored = {run_key(row) for row in found.get("runs", ())}
    return (workdir / predictions.LINES).is_file() and all(
        str(part) in known and part[:3] in scored for part in planned.parts
    )


def note(folder: pathlib.Path, planned: Planned, how: str, **more: Any) -> None:
    """Writes down what has become of a run, and what it was made with."""
    workdir = folder / planned.folder
    workdir.mkdir(parents=True, exist_ok=True)
    before = jsonl.read_object(workdir / FILE, f"delete the folder {workdir}")
    record = {
        "status": how,
        "row": planned.row,
        "seed": planned.seed,
        "trial": planned.trial,
        "overrides": planned.overrides,
        "commands": planned.shown(),
        "config_digest": planned.digest,
        "config": planned.config,
        "versions": versions(),
        "time": time.time(),
        # Of all processes that worked on it.
        "seconds": round(before.get("seconds", 0.0) + more.pop("seconds", 0.0), 1),
        **more,
    }
    jsonl.replace(workdir / FILE, json.dumps(record, indent=1) + "\n")


@functools.cache
def versions() -> Mapping[str, Any]:
    """Returns the versions of Python, of what computes, and of this package's source."""
    found = {"python": platform.python_version(), "machine": platform.machine()}
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = None
    return found | {"commit": _commit()}


def _commit() -> str | None:
    """Returns the commit of the source, with "+" where files differ from it; None outside git."""
    here = pathlib.Path(__file__).parent

    def git(*arguments):
        return subprocess.run(
            ["git", *arguments], cwd=here, capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        return git("rev-parse", "HEAD") + ("+" if git("status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def tail(path: os.PathLike, lines: int = 15) -> list[str]:
    """Returns the last lines of a log, without the earlier states of progress bars."""
    try:
        content = pathlib.Path(path).read_bytes()[-20_000:].decode("utf-8", "replace")
    except OSError:
        return []
    shown = [line.rstrip().rpartition("\r")[2] for line in content.split("\n")]
    return [line for line in shown if line.strip()][-lines:]
