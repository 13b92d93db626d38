"""Studies whose runs are made by `support/study_program.py` at once."""

import json
import pathlib
import sys

import pytest

from speciarl_jax.tools.study import Row, Study, execute, plan, runner

PROGRAM = pathlib.Path(__file__).resolve().parents[2] / "support" / "study_program.py"


@pytest.fixture
def behave(monkeypatch):
    """Behaviour -> programs of studies are the stand-in with it."""

    def behave(**behaviour):
        def process_of(*command):
            return [sys.executable, str(PROGRAM), json.dumps(behaviour), *command]

        monkeypatch.setattr(execute, "process_of", process_of)

    behave()
    return behave


@pytest.fixture
def study():
    """changes -> a study of a base with samples and two methods, with two seeds."""

    def study(**changes):
        given = {
            "rows": (
                Row("base", "configs/quickstart.py", train=False, best_of=3),
                Row("SpeciaRL", "configs/quickstart.py"),
                Row("binary (RFT)", "configs/binary.py:quickstart"),
            ),
            "seeds": (0, 1),
            "sets": {"in": {}, "out": {"domains": ("vehicle",)}},
            "base": "base",
            "reference": "SpeciaRL",
        }
        return Study(**given | changes)

    return study


@pytest.fixture
def plan_of(study, tmp_path, behave):
    """(names of rows, seeds, rows, changes) -> the plan of a study in a folder of the test."""

    def plan_of(rows=(), seeds=(), rows_of_study=None, **changes):
        if rows_of_study is not None:
            changes["rows"] = rows_of_study
        return runner.Plan(plan.Planner(study(**changes), tmp_path), rows, seeds)

    return plan_of
