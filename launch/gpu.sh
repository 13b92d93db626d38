#!/usr/bin/env bash
# Trains on all GPUs of this machine, and restarts when that can help (launch/restart.sh).
# Arguments go to the training command:
#   bash launch/gpu.sh --config=configs/cub.py --workdir=runs/cub --config.model.path=CHECKPOINT
#   bash launch/gpu.sh --dry_run --config=...        prints the commands
# Environment variables:
#   CUDA             12 or 13; by default the newest that the driver supports
#   MAX_RESTARTS     20
#   VENV, PYTHON     as for launch/environment.sh
set -euo pipefail
cd "$(dirname "$0")/.."
source launch/common.sh
if [ "$#" -eq 0 ]; then
  echo "give the arguments of the training command: --config=FILE --workdir=FOLDER ..." >&2
  exit 1
fi
source launch/cuda.sh
if [ -n "$dry_run" ]; then
  venv="${VENV:-.venv}"
  echo "ACCELERATOR=$ACCELERATOR source launch/environment.sh"
else
  source launch/environment.sh
fi
run exec bash launch/restart.sh --max_restarts="${MAX_RESTARTS:-20}" \
  "$venv/bin/python" -m speciarl_jax.train "$@"
