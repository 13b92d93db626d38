"""Several processes that run one program, each with its own devices: the flags, and the start.

python -m speciarl_jax.train --distributed ...                    on each host of a TPU pod, or
                                                                  in each task of a SLURM job
python -m speciarl_jax.train --coordinator=HOST:PORT --num_processes=N --process_id=I ...
"""

from typing import Any

import jax
from absl import flags, logging

# Seconds. A process that is silent for so long counts as gone, and the others end.
HEARTBEAT = 60
# Seconds that the processes wait for each other when they end.
SHUTDOWN = 60


def define_flags() -> None:
    """The flags that `start` reads."""
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
    """Connects this process with the others, before anything asks for a device.

    Args:
      given: the parsed flags.

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
            f"--distributed found neither a TPU pod nor a SLURM job ({error}); run it there, leave "
            "the flag out for one process, or give --coordinator, --num_processes and --process_id"
        ) from error
    _report()


def _report() -> None:
    logging.info("process %d of %d", jax.process_index(), jax.process_count())
