"""The commands that wrote the results of a workdir, kept so that its figures can be made again."""

import json
import shlex
import sys
import time
from typing import Any

from etils import epath

from speciarl_jax.runtime import jsonl

FILE = "commands.jsonl"


def note(workdir: epath.Path, program: str) -> None:
    """Adds the command line of this process to `commands.jsonl`; only one process may.

    Args:
      program: a module of `speciarl_jax`.
    """
    command = f"python -m speciarl_jax.{program} {shlex.join(sys.argv[1:])}".rstrip()
    rows = [*read(workdir), {"time": time.time(), "program": program, "command": command}]
    jsonl.replace(workdir / FILE, "".join(json.dumps(row) + "\n" for row in rows))


def read(workdir: epath.Path) -> list[dict[str, Any]]:
    """Returns `time`, `program` and `command` of each, the earliest first; none if unknown.

    Raises:
      ValueError: a whole line is damaged.
    """
    return jsonl.read(workdir / FILE, ("program", "command"))
