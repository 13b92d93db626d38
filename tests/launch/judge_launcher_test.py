"""The script that serves a judge next to a training command, with a vLLM that is none."""

import json
import os
import pathlib
import shlex
import socket
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "launch" / "judge_vllm.sh"
URL = "--config.verifier.http_judge.server.url=http://127.0.0.1:{}/v1"

# Takes the arguments of `vllm serve` that vLLM 0.33.0 declares (engine/arg_utils.py,
# entrypoints/common/cli_args.py), refuses others, and serves a scripted judge.
VLLM = """#!{python}
import argparse, json, os, sys
sys.path.insert(0, {support!r})
parser = argparse.ArgumentParser(allow_abbrev=False)
commands = parser.add_subparsers(required=True)
serve = commands.add_parser("serve", allow_abbrev=False)
serve.add_argument("model_tag", nargs="?")
serve.add_argument("--served-model-name", nargs="+")
serve.add_argument("--host")
serve.add_argument("--port", type=int, default=8000)
serve.add_argument("--tensor-parallel-size", "-tp", type=int, default=1)
serve.add_argument("--gpu-memory-utilization", type=float, default=0.9)
serve.add_argument("--max-model-len", type=int)
serve.add_argument("--enable-prefix-caching", action=argparse.BooleanOptionalAction)
given = vars(parser.parse_args()) | {{"devices": os.environ["CUDA_VISIBLE_DEVICES"]}}
with open({log!r}, "w") as file:
    json.dump(given | {{"pid": os.getpid()}}, file)
import judge_server, threading
if given["model_tag"] == "broken":
    sys.exit(3)
with judge_server.JudgeServer(port=given["port"]):
    threading.Event().wait()
"""
# Stands for the python of the virtual environment: notes what it should run and asks the judge.
PYTHON = """#!{python}
import json, os, sys, urllib.request
log = {log!r}
if sys.argv[1:3] == ["-m", "pip"]:
    open(log + ".pip", "w").write(" ".join(sys.argv))
    sys.exit(0)
url = [a.split("=", 1)[1] for a in sys.argv if "server.url=" in a][0]
pair = json.dumps({{"truth": "car", "prediction": "vehicle"}})
body = json.dumps({{"messages": [{{"role": "user", "content": pair}}]}}).encode()
with urllib.request.urlopen(url + "/chat/completions", body, timeout=60) as reply:
    said = json.load(reply)
again = os.path.exists(log)
with open(log, "w") as file:
    devices = os.environ["CUDA_VISIBLE_DEVICES"]
    json.dump({{"argv": sys.argv[1:], "said": said, "devices": devices, "again": again}}, file)
sys.exit(78 if again else 75)
"""


# Four GPUs.
SMI = """#!/usr/bin/env bash
case "$*" in *index*) printf '%s\\n' 0 1 2 3 ;; *driver*) echo 580.65.06 ;; esac
"""


def script(path, text, **values):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text.format(python=sys.executable, **values))
    path.chmod(0o755)


@pytest.fixture
def launch(tmp_path):
    """(arguments, settings) -> the finished script."""
    script(
        tmp_path / "bin" / "vllm",
        VLLM,
        log=str(tmp_path / "vllm.json"),
        support=str(ROOT / "tests" / "support"),
    )
    script(tmp_path / "venv" / "bin" / "python", PYTHON, log=str(tmp_path / "python.json"))

    script(tmp_path / "bin" / "nvidia-smi", SMI)

    def launch(*args, path=tmp_path / "bin", **settings):
        env = {k: v for k, v in os.environ.items() if not k.startswith(("JUDGE", "VLLM", "CUDA"))}
        env |= {"PATH": f"{path}:{env['PATH']}", "PYTHON": sys.executable}
        env |= {"VENV": str(tmp_path / "venv"), "RESTART_WAIT": "0"} | settings
        command = ["bash", str(SCRIPT), *args]
        return subprocess.run(command, env=env, capture_output=True, text=True, timeout=120)

    return launch


def test_a_dry_run_prints_both_commands_and_starts_none(launch, tmp_path):
    training = ["--config=configs/base.py", "--workdir=runs/a b"]
    done = launch("--dry_run", *training, JUDGE="Qwen/Judge", JUDGE_DEVICES="1,2", JUDGE_PORT="81")
    assert done.returncode == 0 and not done.stderr
    serve, install, train = map(shlex.split, done.stdout.splitlines())
    assert install == ["ACCELERATOR=cuda13", "source", "launch/environment.sh"]
    assert serve[:5] == ["env", "CUDA_VISIBLE_DEVICES=1,2", "vllm", "serve", "Qwen/Judge"]
    assert serve[serve.index("--tensor-parallel-size") + 1] == "2"
    assert serve[serve.index("--port") + 1] == "81"
    assert train[:4] == ["env", "CUDA_VISIBLE_DEVICES=0,3", "bash", "launch/restart.sh"]
    assert train[5:8] == [str(tmp_path / "venv/bin/python"), "-m", "speciarl_jax.train"]
    assert train[-2:] == training
    assert "--config.verifier.name=http_judge" in train and URL.format(81) in train
    assert serve[serve.index("--served-model-name") + 1] == "Qwen/Judge"
    assert "--config.verifier.http_judge.model=Qwen/Judge" in train
    assert not list(tmp_path.glob("*.json"))
    (only,) = launch("--dry_run", JUDGE="Qwen/Judge").stdout.splitlines()
    assert shlex.split(only)[:3] == ["env", "CUDA_VISIBLE_DEVICES=0", "vllm"]


def test_it_serves_the_judge_trains_and_stops_both(launch, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    training = ["--config=configs/base.py", "--workdir=runs/a b"]
    done = launch(*training, JUDGE="Qwen/Judge", JUDGE_DEVICES="1,2,3", JUDGE_PORT=str(port))
    # Preempted once, started again, and then refused: the exit status is that of the training.
    assert done.returncode == 78, done.stderr
    served = json.loads((tmp_path / "vllm.json").read_text())
    pid = served.pop("pid")
    assert served == {
        "model_tag": "Qwen/Judge",
        "served_model_name": ["Qwen/Judge"],
        "host": "127.0.0.1",
        "port": port,
        "tensor_parallel_size": 3,
        "gpu_memory_utilization": 0.9,
        "max_model_len": 4096,
        "enable_prefix_caching": True,
        "devices": "1,2,3",
    }
    trained = json.loads((tmp_path / "python.json").read_text())
    assert trained["argv"][:2] == ["-m", "speciarl_jax.train"] and trained["argv"][-2:] == training
    assert trained["devices"] == "0" and trained["again"]
    assert "jax[cuda13]" in (tmp_path / "python.json.pip").read_text()
    assert URL.format(port) in trained["argv"]
    assert "--config.verifier.http_judge.model=Qwen/Judge" in trained["argv"]
    assert "verdict" in trained["said"]["choices"][0]["message"]["content"]
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


@pytest.mark.parametrize(
    "settings, devices",
    [
        ({}, "1,2,3"),
        ({"JUDGE_DEVICES": "3"}, "0,1,2"),
        ({"JUDGE_DEVICES": "5", "CUDA_VISIBLE_DEVICES": "4,5,15"}, "4,15"),
        ({"JUDGE_DEVICES": "0", "TRAIN_DEVICES": "0"}, "0"),
    ],
)
def test_the_training_has_the_gpus_that_the_judge_has_not(launch, settings, devices):
    lines = launch("--dry_run", "--config=x", JUDGE="judge", **settings).stdout.splitlines()
    assert shlex.split(lines[-1])[:2] == ["env", f"CUDA_VISIBLE_DEVICES={devices}"]


def test_a_judge_that_takes_all_gpus_is_refused(launch):
    done = launch("--dry_run", "--config=x", JUDGE="judge", JUDGE_DEVICES="3,2,1,0")
    assert done.returncode == 1 and "name fewer in JUDGE_DEVICES" in done.stderr


def test_a_judge_that_does_not_start_is_reported(launch, tmp_path):
    done = launch("--config=x", JUDGE="broken", JUDGE_PORT="1")
    assert done.returncode == 1 and "the judge ended before it answered" in done.stderr
    assert not (tmp_path / "python.json").exists()
    done = launch("--config=x")
    assert done.returncode != 0 and "set JUDGE to the checkpoint" in done.stderr
    done = launch("--config=x", JUDGE="judge", VLLM="no_such_vllm")
    assert done.returncode == 1 and "there is no command 'no_such_vllm'" in done.stderr
