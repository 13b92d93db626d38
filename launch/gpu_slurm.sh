#!/usr/bin/env bash
# Trains on several hosts of a SLURM cluster: one process for each GPU, joined by jax.distributed.
# All hosts must see the folder of the repository and the workdir.
#   bash launch/gpu_slurm.sh --config=configs/cub.py --workdir=/shared/runs/cub ...    submits
#   bash launch/gpu_slurm.sh --dry_run --config=...                     prints the commands
# Environment variables:
#   NODES            hosts, 2
#   GPUS             GPUs of each host, 8
#   SBATCH_OPTIONS   further options of sbatch, for example "--partition=gpu --time=24:00:00"
#   CUDA             12 or 13, 13
#   MAX_RESTARTS     20
#   NOTICE           seconds for a step and a checkpoint, 300; less than the job's time limit
# NOTICE seconds before the time limit, SLURM signals this script, which passes it on to all tasks:
# they save at the end of the step, and the job is queued again. Before a preemption SLURM signals
# only if the cluster has PreemptParameters=send_user_signal; without it the run resumes from its
# last checkpoint.
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
    --gpus-per-node="$gpus" --signal="B:TERM@${NOTICE:-300}" --requeue --open-mode=append \
    --output=runs/slurm-%j.log "${options[@]}" launch/gpu_slurm.sh "$@"
  if [ -z "$dry_run" ]; then exit; fi
  echo "# and in the job:"
fi
# When one process ends, SLURM ends the others, and all restart together.
program=("$venv/bin/python" -m speciarl_jax.train --distributed "$@")
command=(bash launch/restart.sh --max_restarts="${MAX_RESTARTS:-20}"
  --notify="scancel --signal=TERM ${SLURM_JOB_ID:-JOB}" bash launch/slurm_step.sh "${program[@]}")
if [ -n "$dry_run" ]; then
  run "${command[@]}"
  exec bash launch/slurm_step.sh --dry_run "${program[@]}"
fi
source launch/attend.sh
code=0
attended "${command[@]}" || code=$?
if [ -n "$signalled" ]; then
  case "$code" in
    0 | 74 | 78 | 130) ;;
    *) scontrol requeue "$SLURM_JOB_ID" ;;
  esac
fi
exit "$code"
