"""A tiny policy on disk and small runs of it, shared by the tests of the training programs."""

import collections
import json
import os
import pathlib
import signal
import subprocess
import sys

import jax
import pytest

from speciarl_jax.evaluation import evaluator
from speciarl_jax.runtime import compiler
from speciarl_jax.training import steps
from speciarl_jax.verifiers.base import HostVerifier

ROOT = pathlib.Path(__file__).resolve().parent.parent
SUPPORT = ROOT / "tests" / "support"
# For `configs` and `small_run`, whichever way pytest is started.
sys.path += [str(ROOT), str(SUPPORT)]


class Sweeps:
    """The largest errors of the parity sweeps, printed at the end whether or not they passed."""

    def __init__(self):
        self._found = {}

    def pytest_runtest_logreport(self, report):
        """Also called where other processes run the tests."""
        for name, value in report.user_properties if report.when == "call" else ():
            if name == "sweep":
                sweep, error, unit = value
                count, largest, _ = self._found.get(sweep, (0, 0.0, unit))
                self._found[sweep] = count + 1, max(largest, error), unit

    def pytest_terminal_summary(self, terminalreporter):
        if self._found:
            terminalreporter.section("largest errors of the sweeps")
        for sweep, (count, error, unit) in self._found.items():
            terminalreporter.write_line(f"{sweep:<58} {error:9.2e} {unit} ({count} cases)")


class Failures:
    """Names a test that failed at once, not only at the end, which a stopped run never reaches."""

    def pytest_runtest_logreport(self, report):
        if report.failed and "PYTEST_XDIST_WORKER" not in os.environ:
            crash = getattr(report.longrepr, "reprcrash", None)
            said = str(crash.message if crash else report.longrepr).strip().splitlines() or [""]
            print(f"\nfailed: {report.nodeid} ({report.when}): {said[0][:300]}", flush=True)


def pytest_configure(config):
    config.pluginmanager.register(Sweeps())
    config.pluginmanager.register(Failures())
    # As programs do it. What a test compiles and what a process of it compiles stay equal.
    compiler.compile_quickly()
    # In the background of a shell Ctrl-C is ignored, and the processes of tests would inherit that.
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def record_error(request):
    """(sweep, error, unit) -> None; the largest error of each sweep is shown in the summary."""

    def record(sweep, error, unit="of the largest value"):
        request.node.user_properties.append(("sweep", (sweep, float(error), unit)))

    return record


@pytest.fixture(scope="session")
def compilation_cache(tmp_path_factory):
    """One cache of compiled programs for the processes that run the tests and that tests start."""
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent
    folder = folder / "compilation_cache"
    folder.mkdir(exist_ok=True)
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
    return folder


@pytest.fixture(scope="session", autouse=True)
def _no_programs_of_the_user(compilation_cache):
    """No test reads or writes the folder of compiled programs of whoever runs the tests."""


def _program_key(run):
    """What decides about the programs of a run: equal keys, equal programs."""
    config = json.loads(run.config.to_json())
    # What programs do not read; images, prompts and the verifier's tables are arguments.
    for section in ("checkpoint", "evaluation", "logging", "compilation_cache"):
        del config[section]
    config["data"] = config["data"]["max_prompt_tokens"]
    for name in ("steps", "log_every", "profile_steps", "max_skipped", "stop_after"):
        del config["train"][name]
    del config["train"]["max_correctness_drop"]
    for name in ("options", "http_judge", "max_unjudged_fraction"):
        del config["verifier"][name]
    known = json.dumps(config, sort_keys=True), run.graphdef, run.mesh, run.model_config
    return *known, isinstance(run.verifier, HostVerifier), run.banned_V.tobytes()


@pytest.fixture(scope="module")
def one_torch_thread():
    """Threads that wait for each other over small matrices cost more than they save."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


_programs = collections.OrderedDict()


@pytest.fixture(autouse=True, scope="module")
def _few_memory_maps():
    """A compiled program takes some twenty memory maps, and Linux gives a process 65,530.

    The process that runs half of the tests would come near it: beyond, the compiler crashes.
    """
    yield
    maps = pathlib.Path("/proc/self/maps")
    if maps.exists() and maps.read_bytes().count(b"\n") > 30_000:
        _programs.clear()
        jax.clear_caches()


@pytest.fixture(scope="module")
def shared_programs():
    """Runs of one configuration trace and compile their programs once, not in each `train`.

    For modules that neither count compilations nor replace parts of a program.
    """

    def shared(make, key):
        if key not in _programs:
            _programs[key] = make()
        _programs.move_to_end(key)
        while len(_programs) > 12:
            _programs.popitem(last=False)
        return _programs[key]

    def of_step(run, *others, make=steps.programs):
        return shared(lambda: make(run, *others), ("step", *_program_key(run)))

    def of_answers(run, count, make=evaluator.answer_program):
        return shared(lambda: make(run, count), ("answers", count, *_program_key(run)))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(steps, "programs", of_step)
        patch.setattr(evaluator, "answer_program", of_answers)
        yield


@pytest.fixture(scope="session")
def policy_folder(tmp_path_factory, compilation_cache):
    """A random policy in the Hugging Face layout."""
    import small_run

    folder = tmp_path_factory.mktemp("policy")
    small_run.make_policy(folder)
    return folder


@pytest.fixture(scope="session")
def qwen3_folder(policy_folder, tmp_path_factory):
    """A random Qwen3-VL in the Hugging Face layout."""
    import qwen3_policy

    folder = tmp_path_factory.mktemp("qwen3_vl")
    qwen3_policy.make_policy(folder, policy_folder)
    return folder


@pytest.fixture(scope="session")
def small_config(policy_folder):
    """section__key=value, ... -> a configuration of a training run of seconds."""
    import small_run

    return lambda **changes: small_run.small_config(policy_folder, **changes)


@pytest.fixture(scope="session")
def run(policy_folder):
    """A prepared run; its verifier gives a random policy every category."""
    import small_run

    return small_run.small_run(policy_folder)


@pytest.fixture(scope="session")
def start(compilation_cache):
    """(arguments of python, devices, quick) -> a process in the root of the repository.

    `quick` compiles without optimisation, for numbers that are not compared with this process's.
    """

    import quick_compiler

    started = []

    def start(*args, devices=1, quick=False):
        changes = {
            "JAX_PLATFORMS": "cpu",
            "JAX_COMPILATION_CACHE_DIR": str(compilation_cache),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.2",
            "PYTHONPATH": os.pathsep.join([str(ROOT), str(SUPPORT)]),
        }
        flags = os.environ.get("XLA_FLAGS", "").split()
        flags += [f"--xla_force_host_platform_device_count={devices}"] if devices > 1 else []
        flags += quick_compiler.FLAGS if quick else []
        changes["XLA_FLAGS"] = " ".join(flags)
        process = subprocess.Popen(
            [sys.executable, *map(str, args)],
            cwd=ROOT,
            env=os.environ | changes,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        if process.poll() is None:
            process.kill()


@pytest.fixture(scope="session")
def start_program(start):
    """(name, devices, options) -> a process with that program of `support/small_run.py`."""

    def start_program(name, devices=1, **options):
        command = (SUPPORT / "small_run.py", name, json.dumps(options))
        return start(*command, devices=devices, quick=devices > 1)

    return start_program
