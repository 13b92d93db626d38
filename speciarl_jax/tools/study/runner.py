"""Runs what is missing of a study: trials first, then what is reported."""

import itertools
import pathlib
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from speciarl_jax.tools.study import collect, execute, search, state
from speciarl_jax.tools.study.definition import Row
from speciarl_jax.tools.study.launchers import Launcher
from speciarl_jax.tools.study.plan import Planned, Planner

# Seconds between two looks at runs of other programs.
_LOOK_EVERY = 10.0


class Plan:
    """All runs of the rows and seeds that were asked for, as far as they are known."""

    def __init__(self, planner: Planner, rows: Sequence[str] = (), seeds: Sequence[int] = ()):
        """Selects rows and seeds.

        Args:
          rows: names; all when empty.
          seeds: all when empty.

        Raises:
          ValueError: a row or a seed does not exist.
        """
        study = planner.study
        self.planner, self.answers = planner, collect.Answers(planner.folder)
        self.rows = [study.row(name) for name in rows] or list(study.rows)
        if unknown := sorted(set(seeds) - set(study.seeds)):
            raise ValueError(f"--seeds has {unknown}; the study has {list(study.seeds)}")
        self.seeds = list(seeds) or list(study.seeds)

    def choice(self, row: Row) -> dict[str, Any] | None:
        """Returns what the search chose for a row; None where it is not known yet, or none."""
        return search.choose(self.planner, row, self.answers) if row.search else None

    def runs(self) -> Iterator[Planned]:
        """Yields the runs that can be run now; those that hang on trials only after these."""
        seen = set()
        for row in self.rows:
            for planned in search.needed(self.planner, row):
                if planned.folder not in seen:
                    seen.add(planned.folder)
                    yield planned
        for row in self.rows:
            yield from self.reported(row)

    def reported(self, row: Row) -> Iterator[Planned]:
        """Yields the reported runs of a row; none while its setting is not chosen."""
        choice = self.choice(row)
        if row.search and choice is None:
            return
        for planned in self.planner.reported(row, choice and choice["chosen"]):
            if planned.seed is None or planned.seed in self.seeds:
                yield planned

    def waiting(self) -> list[str]:
        """Returns the rows whose setting is not chosen yet."""
        return [row.name for row in self.rows if row.search and self.choice(row) is None]

    def has_ended(self, planned: Planned) -> bool:
        """Whether a run need not be run any more."""
        if planned.trial is not None:
            return search.has_ended(self.planner.folder, planned)
        return state.status(self.planner.folder, planned) == state.FINISHED


def run(
    plan: Plan,
    launcher: Launcher,
    changed: Callable[[], None],
    say: Callable[[str], None] = print,
    *,
    wait: bool = True,
    look_every: float = _LOOK_EVERY,
) -> list[str]:
    """Runs everything that has not ended; a failed run does not stop the others.

    Args:
      changed: is called after each finished run, to write the results anew.
      say: receives a line about each run.
      wait: whether to wait for runs that other programs work on.

    Returns:
      Descriptions of the runs that failed.
    """
    folder, failed, tried = plan.planner.folder, {}, set()
    while True:
        todo = [p for p in plan.runs() if p.folder not in tried and not plan.has_ended(p)]
        # Those that others hang on come first.
        todo = [p for p in todo if p.trial is not None] or todo
        if not todo:
            break
        busy, begun = [], _teller(folder, len(todo), say)
        for planned, result in launcher(folder, todo, begun):
            if result.status == execute.BUSY:
                busy.append(planned)
                continue
            tried.add(planned.folder)
            say(execute.describe(planned, result))
            if result.status == state.FAILED:
                failed[planned.folder] = execute.describe(planned, result)
            else:
                changed()
        if len(busy) == len(todo):
            names = ", ".join(planned.name for planned in busy)
            if not wait:
                say(f"other programs work on {names}; nothing else is left")
                break
            say(f"waits for other programs, which work on {names}")
            _wait_for_one(plan, busy, failed, tried, look_every)
            changed()
    return list(failed.values())


def _teller(folder: pathlib.Path, total: int, say: Callable[[str], None]):
    """Returns what says of each run that it begins, with its number."""
    numbers = itertools.count(1)

    def begun(planned: Planned) -> None:
        log = execute.log_of(folder, planned)
        say(f"[{next(numbers)}/{total}] {planned.name}: runs, log in {log}")

    return begun


def _wait_for_one(plan, busy, failed, tried, look_every) -> None:
    """Waits until one of these runs has ended, or its program has.

    A run that another program could not finish counts as tried.
    """
    folder = plan.planner.folder
    while True:
        time.sleep(look_every)
        for planned in busy:
            how = state.status(folder, planned)
            if how == state.FAILED and not plan.has_ended(planned):
                noted = state.read(folder, planned)
                result = execute.Result(
                    state.FAILED,
                    noted["seconds"],
                    *(noted[k] for k in ("exit_code", "lines", "log")),
                )
                failed[planned.folder] = execute.describe(planned, result)
                tried.add(planned.folder)
                return
            if how == state.FINISHED or not execute.is_busy(folder, planned):
                return


def folder_of(workdir: str) -> pathlib.Path:
    """Returns the folder of a study. ValueError: it is in a bucket, where nothing can be locked."""
    if "://" in workdir:
        raise ValueError(f"--workdir={workdir}: a study needs a folder on a disk, not a bucket")
    return pathlib.Path(workdir)
