"""Connects several processes that run one program, each with its own devices.

python -m speciarl_jax.train --distributed ...                    on each host of a TPU pod, or
                                                                  in each task of a SLURM job
python -m speciarl_jax.train --coordinator=HOST:PORT --num_processes=N --process_id=I ...
"""

import itertools
import json
from typing import Any

import jax
from absl import flags, logging
from jax._src import distributed as jax_distributed

from speciarl_jax.runtime import exit_codes
from speciarl_jax.runtime.messages import first_line

# Seconds after which a silent process counts as gone, and the others end.
HEARTBEAT = 60
# Seconds that the processes wait for each other at their end, and in `allgather`.
SHUTDOWN, TIMEOUT = 60, 1800
_exchanges = itertools.count()


def define_flags() -> None:
    """Defines the flags that `start` reads."""
    flags.DEFINE_bool(
        "distributed", False, "Several processes, found out from the TPU pod or the SLURM job."
    )
    flags.DEFINE_string(
        "coordinator", None, "HOST:PORT of process 0; give --num_processes and --process_id too."
    )
    flags.DEFINE_integer("num_processes", None, "How many processes there are; with --coordinator.")
    flags.DEFINE_integer("process_id", None, "Which one this is, from 0; with --coordinator.")
    flags.DEFINE_integer("heartbeat_timeout", HEARTBEAT, "Seconds until a silent process is gone.")


def start(given: Any) -> None:
    """Connects this process with the others; to be called before anything asks for a device.

    Raises:
      ValueError: the flags do not fit together, or `--distributed` finds no cluster.
      jax.errors.JaxRuntimeError: the others did not come in time.
    """
    explicit = {
        name: getattr(given, name) for name in ("coordinator", "num_processes", "process_id")
    }
    missing = [f"--{name}" for name, value in explicit.items() if value is None]
    times = {
        "heartbeat_timeout_seconds": given.heartbeat_timeout,
        "shutdown_timeout_seconds": SHUTDOWN,
    }
    if len(missing) == len(explicit):
        if given.distributed:
            _detect(times)
        return
    if missing or given.distributed:
        raise ValueError(
            f"{', '.join(missing) or '--distributed'} does not go with the rest: give "
            "--coordinator=HOST:PORT, --num_processes=N and --process_id=I together, or "
            "--distributed alone"
        )
    count, number = given.num_processes, given.process_id
    if not 0 <= number < count:
        raise ValueError(
            f"--process_id={number} with --num_processes={count}: processes are numbered from 0 to "
            f"{count - 1}"
        )
    host, _, port = given.coordinator.rpartition(":")
    if not host or not port.isdigit():
        raise ValueError(f"--coordinator={given.coordinator} is not HOST:PORT")
    jax.distributed.initialize(given.coordinator, count, number, **times)
    _report()


def _detect(times: dict[str, int]) -> None:
    try:
        jax.distributed.initialize(**times)
    except jax.errors.JaxRuntimeError:
        raise  # A RuntimeError too, and a cluster was found.
    except (ValueError, RuntimeError) as error:
        raise ValueError(
            f"--distributed found neither a TPU pod nor a SLURM job ({first_line(error)}); "
            "run it there, leave the flag out for one process, or give --coordinator, "
            "--num_processes and --process_id"
        ) from error
    _report()


def _report() -> None:
    logging.info("process %d of %d", jax.process_index(), jax.process_count())


def allgather(value: Any) -> list[Any]:
    """Returns small values of all processes, in the order of the processes; of one, `[value]`.

    They go through JAX's coordination service. `multihost_utils.process_allgather` is a program on
    the devices: it would wait there for the step before, and the host with it.

    All processes must call it equally often and in the same order, from their main threads.

    Args:
      value: JSON-able; tuples come back as lists.

    Raises:
      exit_codes.RestartNeeded: a process did not come within `TIMEOUT` seconds.
      jax.errors.JaxRuntimeError: a process went away.
    """
    if jax.process_count() == 1:
        return [value]
    # JAX gives out the client of its coordination service nowhere else.
    client = jax_distributed.global_state.client
    count, process, number = jax.process_count(), jax.process_index(), next(_exchanges)
    folder = f"speciarl_jax/gather/{number}"  # serves once; all processes count alike

    def arrived() -> dict[int, str]:
        texts = client.key_value_dir_get(f"{folder}/")
        return {int(key.rpartition("/")[2]): text for key, text in texts}

    client.key_value_set(f"{folder}/{process}", json.dumps(value))
    try:
        client.wait_at_barrier(folder, 1000 * TIMEOUT)
    except jax.errors.JaxRuntimeError as error:
        if "DEADLINE_EXCEEDED" not in str(error):
            raise
        late = sorted(set(range(count)) - arrived().keys())
        raise exit_codes.RestartNeeded(
            f"process {process} of {count} waited {TIMEOUT} seconds for processes {late}, which "
            "hang or are far behind; look at their logs, and start all of them again"
        ) from error
    texts = arrived()
    if process == 0:
        # Every process that came to this barrier has read the values of the exchange before.
        client.key_value_delete(f"speciarl_jax/gather/{number - 1}")
    return [json.loads(texts[i]) for i in range(count)]
