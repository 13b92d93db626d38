"""The launchers of TPU pods and GKE, with stand-ins of their tools, and what documents say."""

import json
import math
import re
import time

import kubernetes_validate
import launchers
import pytest
import yaml
from kubeflow_trainer_api.models.jobset_v1alpha2_job_set import JobsetV1alpha2JobSet
from launchers import ROOT, TRAINING, printed, shell, stand_in

from speciarl_jax.runtime import exit_codes


@pytest.fixture
def checkout(tmp_path):
    return launchers.copy_to(tmp_path)


# tpu_pod.sh

POD = {"TPU": "pod", "ZONE": "us-west4-a", "PROJECT": "mine", "POLL": "0"}


def test_a_pod_script_prints_every_action(checkout):
    for action, wanted in {
        "create": "queued-resources create pod --node-id=pod --zone=us-west4-a --project=mine",
        "setup": "tpus tpu-vm scp",
        "run": "speciarl_jax.train\\ --distributed",
        "logs": "--worker=0 --command=tail",
        "status": "value\\(state.state\\)",
        "stop": "kill\\ -TERM",
        "resume": "queued-resources delete pod",
        "delete": "queued-resources delete pod --zone=us-west4-a --project=mine --force --quiet",
    }.items():
        args = TRAINING if action in ("run", "resume") else []
        assert wanted in printed(checkout, "tpu_pod.sh", "--dry_run", action, *args, **POD)
    done = shell(checkout, "tpu_pod.sh")
    assert done.returncode == 1 and "tpu_pod.sh create" in done.stderr
    done = shell(checkout, "tpu_pod.sh", "create")
    assert done.returncode == 1 and "set TPU to the name of the pod" in done.stderr


def test_a_pod_that_is_gone_altogether_is_made_again(checkout):
    """`describe` fails until `create` has run, and there is nothing to delete."""
    stand_in(
        checkout / "tools",
        "gcloud",
        f"""
echo "$3 $4" >> {checkout}/log
case "$3 $4" in
  "queued-resources describe") [ -e {checkout}/made ] || {{ echo NOT_FOUND >&2; exit 1; }}
    echo ACTIVE ;;
  "queued-resources create") touch {checkout}/made ;;
  "queued-resources delete") exit 1 ;;
esac""",
    )
    printed(checkout, "tpu_pod.sh", "resume", *TRAINING, **POD)
    assert (checkout / "log").read_text().splitlines() == [
        *("queued-resources describe", "queued-resources create", "queued-resources describe"),
        *("tpu-vm scp", "tpu-vm ssh", "tpu-vm ssh", "tpu-vm ssh"),
    ]


@pytest.mark.parametrize("silent, code", [(4, 0), (5, 1)])
def test_a_pod_whose_state_is_not_told_is_waited_for_a_few_times(checkout, silent, code):
    stand_in(
        checkout / "tools",
        "gcloud",
        f"""
[ "$4" = describe ] || exit 0
echo . >> {checkout}/asked
[ "$(wc -l < {checkout}/asked)" -le {silent} ] || {{ echo ACTIVE; exit 0; }}
echo "Reauthentication failed" >&2; exit 1""",
    )
    done = shell(checkout, "tpu_pod.sh", "create", **POD)
    assert done.returncode == code, done.stderr
    assert ("gcloud auth login" in done.stderr) == bool(code)
    assert len((checkout / "asked").read_text().splitlines()) == 5


def test_a_pod_is_made_set_up_run_stopped_and_made_again(checkout):
    """`gcloud` keeps the state of the pod in a file, and two folders are its workers."""
    pod, tools = checkout / "pod", checkout / "tools"
    pod.mkdir()
    stand_in(
        tools,
        "gcloud",
        f"""
echo "$3 $4" >> {pod}/log
case "$3 $4" in
  "queued-resources create") echo PROVISIONING > {pod}/state; mkdir -p {pod}/w0 {pod}/w1 ;;
  "queued-resources describe") cat {pod}/state; echo ACTIVE > {pod}/state ;;
  "queued-resources delete") rm -r {pod}/w0 {pod}/w1 {pod}/state ;;
  "tpu-vm scp") for w in {pod}/w?; do cp "$5" $w/; done ;;
  "tpu-vm ssh")
    command="${{@: -1}}"; failed=0
    for w in {pod}/w?; do (cd $w && HOME=$w bash -c "${{command#--command=}}") || failed=1; done
    exit $failed ;;
esac""",
    )
    # uv, and pip that would fetch it; the interpreter that `uv python find` names stands in too.
    stand_in(tools, "uv", '[ "$2" != find ] || echo python3')
    stand_in(
        tools,
        "python3",
        'case "$*" in "-m venv "*) mkdir -p "$3/bin"; cp "$0" "$3/bin/python" ;;\n'
        '  "-m speciarl_jax"*) trap "echo saved; exit 75" TERM; echo "$*"; '
        "for i in $(seq 600); do sleep 0.1; done ;; esac",
    )

    def pod_sh(*args):
        return printed(checkout, "tpu_pod.sh", *args, **POD)

    def wait_for(text):
        until = time.monotonic() + 30
        logs = [pod / worker / "speciarl_jax" / "train.log" for worker in ("w0", "w1")]
        while not all(log.exists() and text in log.read_text() for log in logs):
            assert time.monotonic() < until
            time.sleep(0.05)

    pod_sh("create")
    pod_sh("setup")
    assert (pod / "w1" / "speciarl_jax" / "launch" / "restart.sh").exists()
    pod_sh("run", *TRAINING)
    wait_for("-m speciarl_jax.train --distributed " + " ".join(TRAINING))
    assert pod_sh("status").splitlines() == ["ACTIVE", "running", "running"]
    # A second run is refused, also where only one worker still runs the first.
    running = (pod / "w0" / "speciarl_jax" / "train.pid").read_text()
    for action in ("run", "resume"):
        done = shell(checkout, "tpu_pod.sh", action, *TRAINING, **POD)
        assert done.returncode != 0 and "a run is under way on this worker" in done.stderr
        assert (pod / "w0" / "speciarl_jax" / "train.pid").read_text() == running
        (pod / "w1" / "speciarl_jax" / "train.pid").rename(pod / "pid")
        done = shell(checkout, "tpu_pod.sh", action, *TRAINING, **POD)
        assert done.returncode != 0
        assert not (pod / "w1" / "speciarl_jax" / "train.pid").exists()
        (pod / "pid").rename(pod / "w1" / "speciarl_jax" / "train.pid")
    pod_sh("stop")
    wait_for("saved")
    # Taken away.
    (pod / "log").unlink()
    (pod / "state").write_text("SUSPENDED\n")
    pod_sh("resume", *TRAINING)
    assert (pod / "log").read_text().splitlines() == [
        "queued-resources describe",  # whether it is there
        "queued-resources delete",
        "queued-resources create",
        "queued-resources describe",
        "queued-resources describe",
        "tpu-vm scp",
        "tpu-vm ssh",  # installs
        "tpu-vm ssh",  # is there a run?
        "tpu-vm ssh",  # starts
    ]
    wait_for("--distributed")
    pod_sh("stop")
    wait_for("saved")


# What the scripts and the documents tell a person to run on a pod.


@pytest.mark.parametrize("name", ["README.md", "docs/operations.md", "launch/tpu_pod.sh"])
def test_the_first_run_on_a_pod_is_one_that_was_planned_for_it(name):
    script = (ROOT / "launch" / "tpu_pod.sh").read_text()
    assert "${TYPE:-v5litepod-16}" in script
    configs = re.findall(
        r"tpu_pod\.sh\S* run --config=configs/(\w+)\.py", (ROOT / name).read_text()
    )
    assert configs
    for config in configs:
        planned(config, "v5e", 16)


def planned(config, chip, chips):
    plan = json.loads((ROOT / "launch" / "plans" / f"{config}.json").read_text())
    assert plan["topology"].startswith(f"{chip}:") and plan["chips"] == chips
    assert plan["programs"] and all(program["fits"] for program in plan["programs"])
    text = (ROOT / "launch" / "plans" / f"{config}.txt").read_text()
    assert f"--config=configs/{config}.py --topology={plan['topology']}" in text.splitlines()[0]


# tpu_gke.yaml, and its image


def test_the_image_gets_neither_history_nor_runs_nor_what_git_ignores():
    skipped = (ROOT / ".dockerignore").read_text().splitlines()
    ignored = (ROOT / ".gitignore").read_text().split()
    wanted = {".git", *(name.strip("/") for name in ignored)}
    assert wanted <= {line.removeprefix("**/") for line in skipped}


@pytest.fixture
def jobset():
    return yaml.safe_load((ROOT / "launch" / "tpu_gke.yaml").read_text())


def without_nothing(tree):
    """The same without keys whose value is None."""
    if isinstance(tree, dict):
        return {k: without_nothing(v) for k, v in tree.items() if v is not None}
    return [without_nothing(x) for x in tree] if isinstance(tree, list) else tree


def test_the_jobset_fits_the_models_of_its_api(jobset):
    found = JobsetV1alpha2JobSet.from_dict(jobset)
    # What the models do not know would be lost; protocol is filled in.
    known = without_nothing(found.to_dict())
    (workers,) = known["spec"]["replicatedJobs"]
    (container,) = workers["template"]["spec"]["template"]["spec"]["containers"]
    assert [port.pop("protocol") for port in container["ports"]] == ["TCP", "TCP"]
    assert known == jobset
    (workers,) = jobset["spec"]["replicatedJobs"]
    job = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "workers"}}
    kubernetes_validate.validate(job | {"spec": workers["template"]["spec"]}, "1.31", strict=True)


def test_the_jobset_stops_at_the_codes_that_a_restart_does_not_help(jobset):
    (workers,) = jobset["spec"]["replicatedJobs"]
    spec = workers["template"]["spec"]
    (rule,) = spec["podFailurePolicy"]["rules"]
    assert sorted(rule["onExitCodes"]["values"]) == sorted([exit_codes.STORAGE, exit_codes.REFUSED])
    (container,) = spec["template"]["spec"]["containers"]
    assert rule["onExitCodes"]["containerName"] == container["name"]
    (stop,) = jobset["spec"]["failurePolicy"]["rules"]
    assert stop["action"] == "FailJobSet" and stop["onJobFailureReasons"] == ["PodFailurePolicy"]
    assert stop["targetReplicatedJobs"] == [workers["name"]]
    assert spec["parallelism"] == spec["completions"] and spec["backoffLimit"] == 0
    assert "--distributed" in container["args"]


def test_the_jobset_runs_what_was_planned_for_its_slice(jobset):
    (workers,) = jobset["spec"]["replicatedJobs"]
    pod = workers["template"]["spec"]["template"]["spec"]
    (config,) = [
        found.group(1)
        for argument in pod["containers"][0]["args"]
        if (found := re.fullmatch(r"--config=configs/(\w+)\.py", argument))
    ]
    places = pod["nodeSelector"]
    assert places["cloud.google.com/gke-tpu-accelerator"] == "tpu-v5-lite-podslice"
    topology = places["cloud.google.com/gke-tpu-topology"]
    chips = math.prod(int(side) for side in topology.split("x"))
    hosts = workers["template"]["spec"]["parallelism"]
    assert chips == hosts * pod["containers"][0]["resources"]["limits"]["google.com/tpu"]
    planned(config, "v5e", chips)
