#!/usr/bin/env bash
# Trains on several hosts of a SLURM cluster: one process for each GPU, joined by jax.distributed.
# The folder of the repository and the workdir must lie where all hosts see them.
#   bash launch/gpu_slurm.sh --config=configs/cub.py --workdir=/shared/runs/cub ...    submits
#   bash launch/gpu_slurm.sh --dry_run --config=...                     prints the commands
# Settings, all of the environment:
#   NODES            hosts, 2
#   GPUS             GPUs of each host, 8
#   SBATCH_OPTIONS   further options of sbatch, for example "--partition=gpu --time=24:00:00"
#   CUDA             12 or 13, 13
#   MAX_RESTARTS     20
# SLURM warns two minutes before it takes the hosts away; then the run saves, and the job is queued
# again. It goes on from its last checkpoint.
set -euo pipefail
if [ -n "${SLURM_SUBMIT_DIR:-}" ]; then cd "$SLURM_SUBMIT_DIR"; else cd "$(dirname "$0")/.."; fi
source launch/common.sh
if [ "$#" -eq 0 ]; then
  echo "give the arguments of the training command: --config=FILE --workdir=FOLDER ..." >&2
  exit 1
fi
gpus="${GPUS:-8}"
venv="${VENV:-.venv}"
if [ -z "${SLURM_JOB_ID:-}" ]; then
  if [ -z "$dry_run" ]; then
    export ACCELERATOR="cuda${CUDA:-13}"
    source launch/environment.sh
    mkdir -p runs
  fi
  read -r -a options <<< "${SBATCH_OPTIONS:-}"
  run sbatch --job-name=speciarl_jax --nodes="${NODES:-2}" --ntasks-per-node="$gpus" \
    --gpus-per-node="$gpus" --signal=B:TERM@120 --requeue --open-mode=append \
    --output=runs/slurm-%j.log "${options[@]}" launch/gpu_slurm.sh "$@"
  if [ -z "$dry_run" ]; then exit; fi
  echo "# and in the job:"
fi
# When one process ends, SLURM ends the others, and all begin again together.
command=(bash launch/restart.sh --max_restarts="${MAX_RESTARTS:-20}"
  srun --kill-on-bad-exit=1 --label "$venv/bin/python" -m speciarl_jax.train --distributed "$@")
if [ -n "$dry_run" ]; then run "${command[@]}"; exit; fi
"${command[@]}" &
child=$!
trap 'kill -TERM "$child"' TERM
code=0
wait "$child" || code=$?
if kill -0 "$child" 2> /dev/null; then
  # The wait ended with the signal; the command saves now.
  code=0
  wait "$child" || code=$?
fi
if [ "$code" -eq 75 ]; then scontrol requeue "$SLURM_JOB_ID"; fi
exit "$code"
