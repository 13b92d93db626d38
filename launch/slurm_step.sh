#!/usr/bin/env bash
# Runs a command as a step of a SLURM job, once in each task, and returns the exit code that decides:
#   bash launch/slurm_step.sh COMMAND...
# launch/gpu_slurm.sh does so. When one task ends with an error, SLURM kills the others. `srun`
# returns the highest code of all tasks, where 128 + N stands for a death by signal N, so that a
# 74 or 78 (speciarl_jax/runtime/exit_codes.py) would not be seen: each task adds 128 to them, and here that is
# taken off again.
set -uo pipefail
if [ "${1:-}" = --task ]; then
  # shellcheck source=launch/attend.sh
  source "$(dirname "$0")/attend.sh"
  shift
  # A notice comes to the task alone, not to what it runs.
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
