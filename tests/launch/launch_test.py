"""The launchers: clean shell, what they would run, and what they do where tools have stand-ins."""

import pathlib
import signal
import subprocess
import sys
import time

import launchers
import pytest
from launchers import ROOT, TRAINING, environment, printed, shell, stand_in

from speciarl_jax.runtime import exit_codes, interrupts

SCRIPTS = sorted((ROOT / "launch").glob("*.sh"))


@pytest.fixture
def checkout(tmp_path):
    return launchers.copy_to(tmp_path)


def test_the_shell_is_clean():
    checker = pathlib.Path(sys.executable).parent / "shellcheck"
    done = subprocess.run(
        [checker, "--external-sources", *(f"launch/{s.name}" for s in SCRIPTS)],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr


# restart.sh


def counted(checkout, codes):
    """A command that ends with these codes in turn, and the arguments that run it."""
    count = checkout / "count"
    body = f"n=$(cat {count} 2> /dev/null || echo 0); echo $((n + 1)) > {count}\ncodes=({codes})\n"
    stand_in(checkout / "tools", "command", body + "exit ${codes[$n]}")
    return count, str(checkout / "tools" / "command")


@pytest.mark.parametrize(
    "codes, code, runs",
    [
        ("75 1 0", 0, 3),
        (f"75 {exit_codes.REFUSED} 0", exit_codes.REFUSED, 2),
        (f"{exit_codes.STORAGE} 0", exit_codes.STORAGE, 1),
        ("137 134 0", 0, 3),
        (f"{interrupts.CODE} 0", interrupts.CODE, 1),
        ("75 75 75 75 75 0", exit_codes.RESTART, 4),
    ],
)
def test_restarts_only_where_that_can_help_and_so_many_times(checkout, codes, code, runs):
    count, command = counted(checkout, codes)
    done = shell(checkout, "restart.sh", "--max_restarts=3", "--wait=0", command)
    assert done.returncode == code and count.read_text().strip() == str(runs), done.stderr
    assert done.stderr.count("restart.sh: exit code") == runs - 1 + (runs == 4)


def test_a_notice_to_the_launcher_reaches_the_command_and_ends_it(checkout):
    stand_in(
        checkout / "tools",
        "command",
        'trap "echo saved; sleep 0.5; exit 75" TERM\necho started\nwhile true; do sleep 0.1; done',
    )
    process = subprocess.Popen(
        ["bash", checkout / "launch" / "restart.sh", "--wait=0", checkout / "tools" / "command"],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "started\n"
    process.send_signal(signal.SIGTERM)
    time.sleep(0.2)
    process.send_signal(signal.SIGTERM)
    assert process.stdout.read() == "saved\n"
    assert process.wait(timeout=30) == exit_codes.RESTART


@pytest.mark.parametrize("times", [1, 2])
def test_a_ctrl_c_to_the_launcher_lets_the_command_save_and_the_second_kills_it(checkout, times):
    stand_in(
        checkout / "tools",
        "command",
        f'trap "echo saved; slow {10 if times == 1 else 600}; echo ended; exit 75" TERM\n'
        "slow() { for _ in $(seq $1); do sleep 0.1; done; }\n"
        "echo started\nwhile true; do sleep 0.1; done",
    )
    process = subprocess.Popen(
        ["bash", checkout / "launch" / "restart.sh", "--wait=0", checkout / "tools" / "command"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    assert process.stdout.readline() == "started\n"
    process.send_signal(signal.SIGINT)
    assert process.stdout.readline() == "saved\n"
    if times == 2:
        process.send_signal(signal.SIGINT)
    assert process.wait(timeout=30) == interrupts.CODE
    if times == 1:
        assert process.stdout.read() == "ended\n"
    assert process.stderr.read().startswith("Ctrl-C: waits until")


def test_a_notice_that_comes_while_it_waits_is_the_end(checkout):
    process = subprocess.Popen(
        ["bash", checkout / "launch" / "restart.sh", "--wait=60", "bash", "-c", "exit 1"],
        stderr=subprocess.PIPE,
        text=True,
    )
    assert "restart 1 of 20 in 60 s" in process.stderr.readline()
    time.sleep(0.2)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=30) == exit_codes.RESTART
    assert process.stderr.read() == ""


# gpu.sh, gpu_slurm.sh


@pytest.mark.parametrize("driver, cuda", [("550.54.15", "12"), ("580.65.06", "13")])
def test_gpu_takes_the_jax_that_the_driver_can_run(checkout, driver, cuda):
    stand_in(checkout / "tools", "nvidia-smi", f"echo {driver}; echo {driver}")
    lines = printed(checkout, "gpu.sh", "--dry_run", *TRAINING).splitlines()
    assert lines[0] == f"ACCELERATOR=cuda{cuda} source launch/environment.sh"
    assert lines[1].split()[:3] == ["exec", "bash", "launch/restart.sh"]
    assert lines[1].strip().endswith("--config=configs/quickstart.py --workdir=a\\ folder")
    # What it does installs this JAX, and trains.
    did = printed(checkout, "gpu.sh", *TRAINING).splitlines()
    jax = next(x for x in (ROOT / "requirements.txt").read_text().splitlines() if "jax==" in x)
    assert did[0].endswith("jax[cuda" + cuda + "]" + jax.removeprefix("jax"))
    assert did[1] == "python -m speciarl_jax.train " + " ".join(TRAINING)


def test_gpu_without_a_gpu_or_arguments_says_what_to_do(checkout):
    stand_in(checkout / "tools", "nvidia-smi", "exit 9")
    done = shell(checkout, "gpu.sh", *TRAINING)
    assert done.returncode == 1 and "install NVIDIA's driver" in done.stderr
    done = shell(checkout, "gpu.sh")
    assert done.returncode == 1 and "give the arguments" in done.stderr


# As SLURM's own: a signal to `srun` kills the tasks, as does a task that fails; it returns their
# highest code, 128 + N for one that signal N ended. `scancel` signals the tasks, not what they run.
SRUN = """#!{python}
import itertools, os, pathlib, signal, subprocess, sys
command = list(itertools.dropwhile(lambda word: word.startswith("--"), sys.argv[1:]))
tasks = [
    subprocess.Popen(command, env=os.environ | {{"SLURM_PROCID": str(i)}}, start_new_session=True)
    for i in range(2)
]
pathlib.Path("tasks").write_text(" ".join(str(task.pid) for task in tasks))

def end(*_):
    for task in tasks:
        if task.returncode is None:
            os.killpg(task.pid, signal.SIGKILL)

signal.signal(signal.SIGTERM, end)
while running := {{t.pid: t for t in tasks if t.returncode is None}}:
    pid, status = os.wait()
    code = os.waitstatus_to_exitcode(status)
    running[pid].returncode = code if code >= 0 else 128 - code
    if code:
        end()
sys.exit(max(task.returncode for task in tasks))
"""


@pytest.fixture
def slurm(checkout):
    """Script of a task -> the job on a cluster of stand-ins, as it runs."""
    tools = checkout / "tools"
    tools.joinpath("srun").write_text(SRUN.format(python=sys.executable))
    tools.joinpath("srun").chmod(0o755)
    stand_in(tools, "scancel", 'echo "scancel $*"; kill -TERM $(cat tasks)')
    stand_in(tools, "scontrol", 'echo "scontrol $*"')

    def start(task, **settings):
        stand_in(checkout / ".venv" / "bin", "python", task)
        settings |= {"SLURM_JOB_ID": "7", "SLURM_SUBMIT_DIR": str(checkout), "RESTART_WAIT": "0"}
        return subprocess.Popen(
            ["bash", str(checkout / "launch" / "gpu_slurm.sh"), *TRAINING],
            env=environment(checkout, **settings),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    return start


def test_slurm_submits_a_job_that_joins_its_tasks(checkout, slurm):
    dry = printed(checkout, "gpu_slurm.sh", "--dry_run", *TRAINING, NODES="3", GPUS="4")
    submitted, _, job, step = dry.splitlines()
    for option in ("--nodes=3", "--ntasks-per-node=4", "--signal=B:TERM@300", "--requeue"):
        assert option in submitted.split()
    assert "launch/restart.sh --max_restarts=20" in job and "launch/slurm_step.sh" in job
    assert step.startswith("srun --kill-on-bad-exit=1")
    assert "speciarl_jax.train --distributed" in step
    # `sbatch` starts the script in the job.
    stand_in(
        checkout / "tools",
        "sbatch",
        'while [[ "$1" == --* ]]; do shift; done\n'
        f'SLURM_JOB_ID=7 SLURM_SUBMIT_DIR={checkout} bash "$@"',
    )
    stand_in(checkout / ".venv" / "bin", "python", 'echo "python $*"')
    done = printed(checkout, "gpu_slurm.sh", *TRAINING, SBATCH_OPTIONS="--partition=gpu")
    wanted = "python -m speciarl_jax.train --distributed " + " ".join(TRAINING)
    assert done.splitlines()[-2:] == [wanted, wanted]


# A task that saves when it is told, and leaves together with the other; `story` of the first one
# is another.
SAVES = """
[ "$SLURM_PROCID" = 1 ] || [ ! -f story ] || . story
leave() { echo "$SLURM_PROCID saved"; touch "left_$SLURM_PROCID"
  until [ -e left_0 ] && [ -e left_1 ]; do sleep 0.05; done; exit 75; }
trap leave TERM
echo "$SLURM_PROCID ready"
while true; do sleep 0.05; done"""


def told(job, times=1):
    """What a job that is told prints, when both tasks are ready."""
    ready = 0
    while ready < 2:
        line = job.stdout.readline()
        assert line
        ready += "ready" in line
    for _ in range(times):
        job.send_signal(signal.SIGTERM)
        time.sleep(0.1)
    return job.communicate(timeout=60)[0]


@pytest.mark.parametrize("times", [1, 2])
def test_all_tasks_of_a_slurm_job_save_at_a_notice_and_it_is_queued_again(slurm, times):
    job = slurm(SAVES)
    out = told(job, times)
    assert "0 saved" in out and "1 saved" in out
    assert out.count("scancel --signal=TERM 7") == 1
    assert out.count("scontrol requeue 7") == 1 and "restart.sh:" not in out
    # Which of them SLURM killed, when the other had left, is chance.
    assert job.returncode in (exit_codes.RESTART, 137)


@pytest.mark.parametrize("code", [0, exit_codes.STORAGE, exit_codes.REFUSED])
def test_a_slurm_job_that_another_start_does_not_help_is_not_queued_at_a_notice(slurm, code):
    job = slurm(SAVES.replace("exit 75", f"exit {code}"))
    out = told(job)
    assert "scancel" in out and "requeue" not in out and "restart.sh:" not in out
    assert job.returncode == code


@pytest.mark.parametrize("code", [exit_codes.STORAGE, exit_codes.REFUSED])
def test_a_code_that_needs_a_person_wins_over_the_tasks_that_slurm_kills(checkout, slurm, code):
    (checkout / "story").write_text(f"sleep 0.3; exit {code}")
    job = slurm(SAVES)
    out = job.communicate(timeout=60)[0]
    assert job.returncode == code
    assert "restart" not in out and "requeue" not in out


def test_a_slurm_job_starts_again_where_a_task_died_and_is_not_queued_for_ever(checkout, slurm):
    (checkout / "story").write_text("sleep 0.2; kill -KILL $$")
    job = slurm(SAVES, MAX_RESTARTS="2")
    out = job.communicate(timeout=60)[0]
    assert out.count("ready") == 3 and "2 restarts did not help" in out
    assert job.returncode == 137 and "requeue" not in out
