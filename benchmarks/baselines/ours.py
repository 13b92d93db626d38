"""Measures our side of a comparison: `benchmarks` in a process of its own."""

import json
import pathlib
import subprocess
import tempfile

ROOT = pathlib.Path(__file__).resolve().parents[2]


def measure(python, shape, *, repeats, kl_coefficient, lora_rank=16, clock="wall"):
    """Returns the record of one shape, with sharing.

    Args:
      python: interpreter of the environment in which speciarl_jax runs.
      shape: "short", for instance.
      repeats: measurements; their median counts.
      kl_coefficient: 0 for a step without reference.
      lora_rank: of the adapters.
      clock: "wall" or "cpu".
    """
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "bench.json"
        command = [
            str(python),
            "-m",
            "benchmarks",
            f"--shapes={shape}",
            "--noplain",
        ]
        command += [f"--json={path}", f"--repeats={repeats}", f"--clock={clock}"]
        command += [f"--kl_coefficient={kl_coefficient}", f"--lora_rank={lora_rank}"]
        subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
        return json.loads(path.read_text())[0]
