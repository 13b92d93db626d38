#!/usr/bin/env bash
# Runs a command as a step of a SLURM job, once in each task, and returns the deciding exit code:
#   bash launch/slurm_step.sh COMMAND...
# launch/gpu_slurm.sh uses it. When one task ends with an error, SLURM kills the others. `srun`
# returns the highest code of all tasks, and 128 + N for a death by signal N, which would hide a 74
# or 78 (speciarl_jax/runtime/exit_codes.py). So each task adds 128 to these two, and this script
# subtracts it.
set -uo pipefail
if [ "${1:-}" = --task ]; then
  # shellcheck source=launch/attend.sh
  source "$(dirname "$0")/attend.sh"
  shift
  # The signal reaches only the task, not the command that it runs.
  attended "$@"
  code=$?
  case "$code" in 74 | 78) code=$((code + 128)) ;; esac
  exit "$code"
fi
# shellcheck source=launch/common.sh
source "$(dirname "$0")/common.sh"
run srun --kill-on-bad-exit=1 --label bash launch/slurm_step.sh --task "$@"
code=$?
case "$code" in 202 | 206) code=$((code - 128)) ;; esac
exit "$code"
