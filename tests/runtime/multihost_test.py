"""Small values that processes exchange without a program on their devices."""

import json

import pytest
import small_run

from speciarl_jax.runtime import multihost

# Three exchanges, what is left of their keys, and one to which process 1 does not come.
PROGRAM = """
import json, sys
import jax
from jax._src.distributed import global_state
from speciarl_jax.runtime import exit_codes, multihost
process, port = map(int, sys.argv[1:])
jax.distributed.initialize(f"127.0.0.1:{port}", 2, process)
found = [multihost.allgather({"process": process, "sizes": (number, 7)}) for number in range(3)]
print("RESULT", json.dumps(found))
if process:
    global_state.client.wait_at_barrier("over", 60000)
else:
    kept = global_state.client.key_value_dir_get("speciarl_jax/gather")
    print("KEPT", json.dumps(sorted({key.split("/")[2] for key, _ in kept})))
    multihost.TIMEOUT = 1
    try:
        multihost.allgather(0)
    except exit_codes.RestartNeeded as error:
        print("LATE", error)
    global_state.client.wait_at_barrier("over", 60000)
jax.distributed.shutdown()
"""


def said(printed, word):
    (line,) = [line for line in printed.splitlines() if line.startswith(word)]
    return line.removeprefix(word).strip()


def test_one_process_has_only_its_own_value():
    value = {"sizes": (1, 2)}
    assert multihost.allgather(value) == [value]


@pytest.fixture(scope="module")
def printed(start):
    port = small_run.free_port()
    running = [start("-c", PROGRAM, process, port) for process in (0, 1)]
    found = [process.communicate(timeout=300)[0] for process in running]
    assert not any(process.returncode for process in running), "\n".join(found)
    return found


def test_all_processes_get_all_values_in_the_same_order(printed):
    want = [[{"process": p, "sizes": [number, 7]} for p in (0, 1)] for number in range(3)]
    assert [json.loads(said(text, "RESULT")) for text in printed] == [want, want]


def test_keys_of_earlier_exchanges_are_deleted(printed):
    assert json.loads(said(printed[0], "KEPT")) == ["2"]


def test_a_process_that_does_not_come_is_named(printed):
    late = said(printed[0], "LATE")
    assert "process 0 of 2 waited 1 seconds for processes [1]" in late
