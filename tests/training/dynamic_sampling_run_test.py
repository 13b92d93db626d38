"""Runs with dynamic sampling: the same on the devices and on the host, through a kill, a judge that
stays away, and in two processes."""

import dataclasses
import json
import signal
import socket
import time

import host_taxonomy
import jax
import numpy as np
import pytest
import small_run
from host_taxonomy import dynamic_config, on_host

from speciarl_jax import train
from speciarl_jax.experiment import host_verification
from speciarl_jax.experiment.run import prepare

pytestmark = pytest.mark.usefixtures("shared_programs")
# What only a host verifier has.
HOST = {"verify/cache_hits", "verify/asked", "verify/latency_p50", "verify/latency_p95"}


def rows_of(workdir):
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    # Who decided, which only a tree within the program tells.
    own = HOST | {"time", "verify/by_tree", "verify/unmatched"}
    return [
        {k: v for k, v in row.items() if k not in own and not k.startswith("time/")} for row in rows
    ]


def trained(run, workdir):
    lora, _ = train.train(run, workdir)
    return rows_of(workdir), small_run.arrays(lora)


def assert_same(got, want):
    assert got[0] == want[0]
    assert got[1].keys() == want[1].keys()
    for name, value in want[1].items():
        np.testing.assert_array_equal(got[1][name], value, err_msg=name)


@pytest.fixture(scope="module")
def dynamic_run(compilation_cache):
    # As in the program of `host_taxonomy`: compilation takes longer than the steps.
    jax.config.update("jax_disable_most_optimizations", True)
    yield prepare(dynamic_config())
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture(scope="module")
def in_graph(dynamic_run, tmp_path_factory):
    """Rows and adapters of three steps whose tree is on the devices."""
    return trained(dynamic_run, tmp_path_factory.mktemp("in_graph"))


@pytest.mark.slow
def test_a_tree_on_the_host_gives_the_run_of_the_tree_on_the_devices(
    dynamic_run, in_graph, tmp_path
):
    assert_same(trained(on_host(dynamic_run), tmp_path), in_graph)
    rows, _ = in_graph
    assert len(rows) == 3 and max(row["dynamic_sampling/rounds"] for row in rows) > 1
    assert any(0 < row["sampled/groups_with_signal"] < 1 for row in rows)
    assert all(row["update/grad_norm"] > 0 for row in rows)
    full = (json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines())
    for row in full:
        # Verdicts of all rounds are counted, not only those of the last.
        assert row["verify/asked"] == row["dynamic_sampling/rounds"] * 4 * 3
        assert row["verify/latency_p50"] == 0.5


@pytest.mark.slow
def test_a_kill_changes_no_bit(dynamic_run, in_graph, start, tmp_path):
    options = json.dumps({"workdir": str(tmp_path), "host": True, "seconds": 0.5})
    process = start(host_taxonomy.__file__, options)
    until = time.monotonic() + 300
    while not (tmp_path / "checkpoints" / "1").exists():
        assert process.poll() is None, process.stdout.read()
        assert time.monotonic() < until, "no checkpoint appeared"
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "checkpoints" / "3").exists()
    assert_same(trained(on_host(dynamic_run), tmp_path), in_graph)


def test_a_judge_that_stays_away_in_some_round_stops_the_run_which_goes_on_later(
    dynamic_run, in_graph, tmp_path
):
    """It answers in the first round of a step, and not in the second."""
    rounds = [int(row["dynamic_sampling/rounds"]) for row in in_graph[0]]
    last = max(i for i, count in enumerate(rounds) if count > 1)
    run = on_host(dynamic_run)
    submit, calls = run.verifier.submit, []

    def ill(*batch):
        calls.append(1)
        run.verifier.unknown = lambda text: len(calls) > sum(rounds[:last]) + 1
        return submit(*batch)

    run.verifier.submit = ill
    said = f"^step {last + 1}, round 2: 100.0% .*the tree is ill"
    with pytest.raises(host_verification.JudgeUnavailable, match=said):
        train.train(run, tmp_path)
    assert [row["step"] for row in rows_of(tmp_path)] == list(range(1, last + 1))
    assert_same(trained(on_host(dynamic_run), tmp_path), in_graph)


def test_groups_without_verdicts_take_no_place_in_the_batch(dynamic_run, in_graph, tmp_path):
    config = dynamic_config(verifier__max_unjudged_fraction=1.0, train__steps=1)
    run = on_host(dynamic_run, unknown=lambda text: sum(map(ord, text)) % 2 == 0)
    rows, _ = trained(dataclasses.replace(run, config=config), tmp_path)
    row, calm = rows[0], in_graph[0][0]
    assert row["sampled/unjudged"] > 0 == calm["sampled/unjudged"]
    # What is learned from has all its verdicts.
    assert row["verify/unjudged"] == row["verify/groups_dropped"] == 0
    assert row["sampled/groups_with_signal"] < calm["sampled/groups_with_signal"]
    assert row["dynamic_sampling/rounds"] >= calm["dynamic_sampling/rounds"]


@pytest.mark.slow
@pytest.mark.parametrize("host", [False, True])
def test_two_processes_do_what_one_does(start, tmp_path, host):
    for processes in (1, 2):
        workdir = tmp_path / f"run_{processes}"
        workdir.mkdir()
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        options = {
            "workdir": str(workdir),
            "host": host,
            "config": {"mesh__data": 2, "train__steps": 2},
            "out": str(tmp_path / f"lora_{processes}"),
            "processes": processes,
            "port": port,
        }
        running = [
            start(
                host_taxonomy.__file__,
                json.dumps(options | {"process": process}),
                devices=2 // processes,
                quick=True,
            )
            for process in range(processes)
        ]
        printed = [process.communicate(timeout=900)[0] for process in running]
        assert not any(process.returncode for process in running), "\n".join(printed)
    one, two = (rows_of(tmp_path / f"run_{n}") for n in (1, 2))
    assert len(one) == len(two) == 2
    for got, want in zip(two, one, strict=True):
        assert got == pytest.approx(want, rel=1e-3, abs=1e-4)
    want = np.load(tmp_path / "lora_1_0.npz")
    for process in (0, 1):
        got = np.load(tmp_path / f"lora_2_{process}.npz")
        for name in want:
            np.testing.assert_allclose(got[name], want[name], rtol=0, atol=1e-5, err_msg=name)
