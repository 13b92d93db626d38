# shellcheck shell=bash
# Sourced by the scripts beside it: runs a command that is told, once, of a SIGTERM to the script.
notify=()  # what tells the command, in place of a SIGTERM to it
told=""    # set when a SIGTERM came
child=""
sent=""

tell() {
  [ -z "$sent" ] || return 0
  sent=1
  if [ "${#notify[@]}" -gt 0 ]; then
    "${notify[@]}" || true
  else
    kill -TERM "$child" 2> /dev/null || true
  fi
}
# A second signal would say nothing new, and could make `wait` lose the exit code.
trap 'trap "" TERM; told=1; [ -z "$child" ] || tell' TERM

# Runs a command and returns its exit code.
attended() {
  local code=0 again=0
  (trap - TERM; exec "$@") &
  child=$!
  # The signal may have come before the trap knew whom to tell.
  [ -z "$told" ] || tell
  wait "$child" || code=$?
  if [ -n "$told" ]; then
    # The signal cut `wait` short.
    wait "$child" 2> /dev/null || again=$?
    if [ "$again" -ge 0 ] && [ "$again" -ne 127 ]; then code=$again; fi
  fi
  child=""
  return "$code"
}
