"""Runs as jobs of submitit, by its executors that need no cluster."""

import sys

import pytest

from speciarl_jax.runtime import exit_codes
from speciarl_jax.tools.study import execute, launchers, runner, state


def test_jobs_run_what_is_missing(plan_of):
    pytest.importorskip("submitit")
    plan, said = plan_of(["base", "SpeciaRL"]), []
    launcher = launchers.Submitit("debug", "timeout_min=3,slurm_partition=gpu", look_every=0.1)
    assert runner.run(plan, launcher, lambda: None, said.append) == []
    assert all(plan.has_ended(one) for one in plan.runs())
    assert sum("finished in" in line for line in said) == 3


def test_a_job_that_dies_is_told(plan_of, monkeypatch):
    submitit = pytest.importorskip("submitit")
    said = submitit.core.utils.UncompletedJobError("first\nkilled: out of memory")
    monkeypatch.setattr(submitit.local.debug.DebugJob, "exception", lambda job: said)
    launcher = launchers.Submitit("debug", look_every=0.1)
    (failed,) = runner.run(plan_of(["base"]), launcher, lambda: None, lambda line: None)
    assert "base: FAILED" in failed and "\n    killed: out of memory" in failed


@pytest.mark.slow
def test_jobs_of_other_processes_find_the_package(plan_of, tmp_path):
    """The program of the runs is the real one, and refuses a split that does not exist."""
    pytest.importorskip("submitit")
    plan = plan_of(["SpeciaRL"], [0], overrides={"data.options.split": "none"})
    (planned,) = list(plan.runs())
    launcher = launchers.Submitit("local", "timeout_min=10", look_every=0.1)
    ((_, result),) = launcher(tmp_path, [planned], lambda planned: None)
    assert result.status == state.FAILED and result.exit_code == exit_codes.REFUSED, result
    log = execute.log_of(tmp_path, planned).read_text()
    assert "$ python -m speciarl_jax.train" in log and "split" in "\n".join(result.lines)


def test_a_job_goes_on_after_its_time_is_over(plan_of, tmp_path):
    submitit = pytest.importorskip("submitit")
    (planned,) = list(plan_of(["base"]).runs())
    again = launchers.Job(tmp_path, planned).checkpoint()
    assert isinstance(again, submitit.helpers.DelayedSubmission)
    assert again.function.planned == planned


def test_options_of_jobs_are_read():
    text = "timeout_min=120,slurm_partition=gpu,mem_gb=7.5"
    want = {"timeout_min": 120, "slurm_partition": "gpu", "mem_gb": 7.5}
    assert launchers.parse_options(text) == want and launchers.parse_options("") == {}
    with pytest.raises(ValueError, match="NAME=VALUE"):
        launchers.parse_options("timeout_min")


def test_options_that_submitit_does_not_know_are_refused(plan_of, tmp_path):
    pytest.importorskip("submitit")
    launcher = launchers.Submitit("debug", "minutes=3")
    with pytest.raises(ValueError, match="job_options.*minutes"):
        list(launcher(tmp_path, list(plan_of(["base"]).runs()), lambda planned: None))


def test_without_submitit_the_remedy_is_said(monkeypatch):
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(ValueError, match="pip install submitit"):
        launchers.Submitit()
