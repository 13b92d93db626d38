"""Two processes, killed while they validate and started again, end in the bits of a calm run."""

import json
import signal
import subprocess

import pytest
import small_run

from speciarl_jax.runtime import exit_codes
from speciarl_jax.runtime.checkpoint import Checkpoints
from speciarl_jax.training import state as state_lib

pytestmark = pytest.mark.slow

CONFIG = {
    "mesh__data": 2,
    "mesh__fsdp": 2,
    "train__steps": 6,
    "checkpoint__save_every": 3,
    "checkpoint__keep_best": 1,
    "checkpoint__best_metric": "validation/hard/hm",
    "evaluation__every": 2,
    "evaluation__images": 48,
    "evaluation__validation_sets": {"all": {}, "hard": {"difficulty": "hard"}},
}
LIVES = [
    (signal.SIGKILL, "validation of the base, all"),
    (signal.SIGTERM, "validation after step 2, all"),
    (signal.SIGKILL, "validation after step 4, hard"),
]


@pytest.fixture(scope="module")
def start_both(policy_folder, start_program):
    def start_both(workdir):
        port = small_run.free_port()
        return [
            start_program(
                "resumable_program",
                devices=2,
                policy=str(policy_folder),
                workdir=str(workdir),
                config=CONFIG,
                process=process,
                processes=2,
                port=port,
            )
            for process in range(2)
        ]

    return start_both


def finish(both):
    printed = [process.communicate(timeout=900)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0], "\n".join(printed)


def killed(both, sent, moment):
    """Sends a signal to the second process when the first shows that moment."""
    shown = ""
    while moment not in shown:
        assert (one := both[0].stdout.read(1)), shown
        shown += one
    both[1].send_signal(sent)
    codes = []
    for process in reversed(both):
        try:
            process.communicate(timeout=180)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
        codes.append(process.returncode)
    return codes


def found(run, workdir):
    """Metrics without times, arrays of the last checkpoint, and the step of the best."""
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    rows = [{k: v for k, v in row.items() if not k.startswith("time")} for row in rows]
    _, state, _ = state_lib.start(run)
    best = {"keep_best": 1, "best_metric": CONFIG["checkpoint__best_metric"]}
    folder = workdir / "checkpoints"
    with Checkpoints(folder, save_every=1, keep=9, create=False, **best) as checkpoints:
        state, _ = checkpoints.restore(state, {})
        return rows, small_run.arrays(state), checkpoints.best_step()


def test_processes_that_are_killed_while_they_validate_end_in_the_same_bits(
    run, start_both, tmp_path
):
    calm, broken = tmp_path / "calm", tmp_path / "broken"
    finish(start_both(calm))
    for sent, moment in LIVES:
        codes = killed(start_both(broken), sent, moment)
        print(sent.name, moment, codes)
        if sent == signal.SIGKILL:
            assert codes[0] == -signal.SIGKILL and codes[1] != 0
        else:
            assert set(codes) <= {0, exit_codes.RESTART}
    finish(start_both(broken))
    rows, state, best = found(run, broken)
    calm_rows, calm_state, calm_best = found(run, calm)
    assert [row["step"] for row in rows] == [0, 1, 2, 2, 3, 4, 4, 5, 6, 6]
    assert rows == calm_rows and best == calm_best
    for name, value in calm_state.items():
        assert state[name].tobytes() == value.tobytes(), name
