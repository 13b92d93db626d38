#!/usr/bin/env bash
# Trains on a TPU pod: creates it, installs on it, runs, resumes, deletes.
#   export TPU=speciarl ZONE=us-west4-a PROJECT=my-project
#   bash launch/tpu_pod.sh create                     waits until the pod is active
#   bash launch/tpu_pod.sh setup                      copies this folder, installs on all workers
#   bash launch/tpu_pod.sh run --config=configs/cub_v5e16.py --workdir=gs://BUCKET/cub ...
#   bash launch/tpu_pod.sh logs                       follows the log of worker 0, or of LOGS_OF=3
#   bash launch/tpu_pod.sh status
#   bash launch/tpu_pod.sh stop                       saves at the end of the step
#   bash launch/tpu_pod.sh resume --config=... ...    takes the arguments of `run`; creates the pod
#                                                     again if it was taken away
#   bash launch/tpu_pod.sh delete
# `--dry_run` before the name of the action prints the commands. Environment variables:
#   TPU, ZONE, PROJECT   name, zone and paying project of the pod
#   TYPE             accelerator type, v5litepod-16
#   RUNTIME          software version, v2-alpha-tpuv5-lite (v2-alpha-tpuv5 for v5p, v2-alpha-tpuv6e)
#   SPOT             1: cheaper, and may be taken away
#   MAX_RESTARTS     restarts of the training command on each worker, 20
#   POLL             seconds between two checks of a pod that is being created, 30
# The workdir must be a bucket that the pod's service account may write to: workers share no disk.
set -euo pipefail
cd "$(dirname "$0")/.."
source launch/common.sh
action="${1:-}"
shift || true
if [ "$action" != "" ]; then
  : "${TPU:?set TPU to the name of the pod}" "${ZONE:?set ZONE}" "${PROJECT:?set PROJECT}"
fi
where=(--zone="${ZONE:-}" --project="${PROJECT:-}")
folder=speciarl_jax

on_workers() { # which workers, command
  run gcloud compute tpus tpu-vm ssh "$TPU" "${where[@]}" --worker="$1" --command="$2"
}

state() {
  run gcloud compute tpus queued-resources describe "$TPU" "${where[@]}" \
    --format='value(state.state)'
}

create() {
  local spot=()
  if [ "${SPOT:-}" = 1 ]; then spot=(--spot); fi
  run gcloud compute tpus queued-resources create "$TPU" --node-id="$TPU" "${where[@]}" \
    --accelerator-type="${TYPE:-v5litepod-16}" \
    --runtime-version="${RUNTIME:-v2-alpha-tpuv5-lite}" "${spot[@]}"
  if [ -n "$dry_run" ]; then state; return; fi
  local now silent=0
  while true; do
    now="$(state)" || now=""
    case "$now" in
      ACTIVE) return ;;
      "")
        silent=$((silent + 1))
        if [ "$silent" -ge 5 ]; then
          echo "gcloud does not tell the state of $TPU, $silent times in a row; see its messages" \
            "above (is the login still valid? gcloud auth login). The pod may exist and cost money:" \
            "check with tpu_pod.sh status, and continue with setup" >&2
          return 1
        fi
        ;;
      FAILED | SUSPENDED | SUSPENDING)
        echo "the queued resource $TPU is $now; see: gcloud compute tpus queued-resources" \
          "describe $TPU --zone=$ZONE --project=$PROJECT" >&2
        return 1
        ;;
      *) silent=0 ;;
    esac
    echo "$TPU is ${now:-in an unknown state}" >&2
    sleep "${POLL:-30}"
  done
}

# The workers' own Python is older than 3.11.
# shellcheck disable=SC2016  # expanded on the workers
install='set -e; mkdir -p speciarl_jax; tar -xzf speciarl_jax.tar.gz -C speciarl_jax; cd speciarl_jax
python3 -m pip install --quiet --user uv
export PATH="$HOME/.local/bin:$PATH"
uv python install --quiet 3.12
ACCELERATOR=tpu BUCKET=1 PYTHON="$(uv python find 3.12)" bash -c "source launch/environment.sh"'

setup() {
  local archive
  archive="$(mktemp -d)/$folder.tar.gz"
  run tar -czf "$archive" --exclude=./.git --exclude=./.venv --exclude=./runs .
  run gcloud compute tpus tpu-vm scp "$archive" "$TPU:" "${where[@]}" --worker=all
  on_workers all "$install"
}

start() {
  if [ "$#" -eq 0 ]; then
    echo "give the arguments of the training command: --config=FILE --workdir=gs://..." >&2
    exit 1
  fi
  local arguments
  arguments="$(printf ' %q' "$@")"
  # Two runs in one workdir would write over each other.
  on_workers all "cd $folder; if kill -0 \"\$(cat train.pid 2> /dev/null)\" 2> /dev/null; then \
echo 'a run is under way on this worker; end it first: tpu_pod.sh stop' >&2; exit 1; fi"
  on_workers all "cd $folder; nohup bash launch/restart.sh --max_restarts=${MAX_RESTARTS:-20} \
.venv/bin/python -m speciarl_jax.train --distributed$arguments >> train.log 2>&1 < /dev/null & \
echo \$! > train.pid"
}

case "$action" in
  create) create ;;
  setup) setup ;;
  run) start "$@" ;;
  logs) on_workers "${LOGS_OF:-0}" "tail -n 100 -F $folder/train.log" ;;
  status)
    state
    on_workers all "kill -0 \$(cat $folder/train.pid) 2> /dev/null && echo running || echo ended"
    ;;
  stop) on_workers all "kill -TERM \$(cat $folder/train.pid)" ;;
  resume)
    # If gcloud reports no state, nothing is deleted; `create` is refused if the pod exists.
    if [ -z "$dry_run" ]; then now="$(state)" || now=""; else now=SUSPENDED; state; fi
    if [ "$now" != ACTIVE ]; then
      if [ -n "$now" ]; then
        run gcloud compute tpus queued-resources delete "$TPU" "${where[@]}" --force --quiet
      fi
      create
      setup
    fi
    start "$@"
    ;;
  delete) run gcloud compute tpus queued-resources delete "$TPU" "${where[@]}" --force --quiet ;;
  *)
    sed -n '2,/^set /s/^# \{0,1\}//p' "$0" >&2
    exit 1
    ;;
esac
