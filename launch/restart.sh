#!/usr/bin/env bash
# Runs a command, and restarts it when that can help:
#   bash launch/restart.sh [--max_restarts=20] [--wait=10] [--notify=COMMAND] COMMAND...
# Exit codes of the programs (speciarl_jax/runtime/exit_codes.py):
#   0             finished                          stop
#   74            the disk is full or read-only     stop: a person has to free space
#   78            refused: a value does not fit     stop: a person has to mend it
#   130           Ctrl-C                            stop
#   75, 1, death by another signal                  wait --wait seconds and restart
# A SIGTERM to this script is passed on to the command, which saves and ends with 75. So does this
# script, without a restart, because the machine is about to be taken away. --notify names a command
# to run in place of the signal, if a signal would end the program (srun). The environment variable
# RESTART_WAIT sets the default of --wait.
set -uo pipefail
# shellcheck source=launch/attend.sh
source "$(dirname "$0")/attend.sh"
max_restarts=20
pause="${RESTART_WAIT:-10}"
while [ "$#" -gt 0 ]; do
  case "$1" in
    --max_restarts=*) max_restarts="${1#*=}" ;;
    --wait=*) pause="${1#*=}" ;;
    --notify=*) read -r -a notify <<< "${1#*=}" ;;
    *) break ;;
  esac
  shift
done
if [ "$#" -eq 0 ]; then
  echo "usage: restart.sh [--max_restarts=N] [--wait=SECONDS] [--notify=COMMAND] COMMAND..." >&2
  exit 78
fi
restarts=0
while true; do
  attended "$@"
  code=$?
  if [ -n "$signalled" ]; then exit "$code"; fi
  case "$code" in
    0 | 74 | 78 | 130) exit "$code" ;;
  esac
  if [ "$restarts" -ge "$max_restarts" ]; then
    echo "restart.sh: exit code $code, and $restarts restarts did not help" >&2
    exit "$code"
  fi
  restarts=$((restarts + 1))
  echo "restart.sh: exit code $code; restart $restarts of $max_restarts in $pause s" >&2
  sleep "$pause" &
  wait "$!"
  if [ -n "$signalled" ]; then
    kill "$!" 2> /dev/null
    if [ -n "$interrupted" ]; then exit 130; fi
    exit 75
  fi
done
