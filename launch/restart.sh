#!/usr/bin/env bash
# Runs a command, and runs it again when that can help:
#   bash launch/restart.sh [--max_restarts=20] [--wait=10] COMMAND...
# Exit codes of the programs (speciarl_jax/exits.py):
#   0             finished                          stop
#   74            the disk is full or read-only     stop: a person has to free space
#   78            refused: a value does not fit     stop: a person has to mend it
#   75, 1, death by a signal                        wait so many seconds, and start again
# A SIGTERM to this script goes on to the command: it saves and ends with 75, and so does this
# script, without another start, for the machine is about to go.
set -uo pipefail
max_restarts=20
pause=10
while [ "$#" -gt 0 ]; do
  case "$1" in
    --max_restarts=*) max_restarts="${1#*=}" ;;
    --wait=*) pause="${1#*=}" ;;
    *) break ;;
  esac
  shift
done
if [ "$#" -eq 0 ]; then
  echo "usage: restart.sh [--max_restarts=N] [--wait=SECONDS] COMMAND..." >&2
  exit 78
fi
child=""
told=""
trap 'told=1; [ -z "$child" ] || kill -TERM "$child" 2> /dev/null' TERM
restarts=0
while true; do
  "$@" &
  child=$!
  # The notice may have come before the trap knew whom to tell.
  [ -z "$told" ] || kill -TERM "$child" 2> /dev/null
  # `wait` ends early when a signal comes.
  while true; do
    wait "$child"
    code=$?
    kill -0 "$child" 2> /dev/null || break
  done
  if [ -n "$told" ]; then
    # Its own code, where the wait that the signal cut short did not see it.
    wait "$child" 2> /dev/null
    seen=$?
    [ "$seen" -eq 127 ] || code=$seen
    exit "$code"
  fi
  case "$code" in
    0 | 74 | 78) exit "$code" ;;
  esac
  if [ "$restarts" -ge "$max_restarts" ]; then
    echo "restart.sh: exit code $code, and $restarts restarts did not help" >&2
    exit "$code"
  fi
  restarts=$((restarts + 1))
  echo "restart.sh: exit code $code; restart $restarts of $max_restarts in $pause s" >&2
  sleep "$pause" &
  child=$!
  wait "$child"
  [ -z "$told" ] || exit 75
done
