# shellcheck shell=bash
# Sourced by the scripts beside it: runs a command and passes on a SIGTERM, once. A Ctrl-C reaches the
# command as a SIGTERM, too: a script's background jobs ignore SIGINT. The second one kills it.
notify=()  # command that passes it on; empty: a SIGTERM to the command
signalled=""  # set when a SIGTERM came
interrupted=""  # set when a Ctrl-C came
child=""
sent=""

pass_on() {
  [ -z "$sent" ] || return 0
  sent=1
  if [ "${#notify[@]}" -gt 0 ]; then
    "${notify[@]}" || true
  else
    kill -TERM "$child" 2> /dev/null || true
  fi
}
# A second signal carries no news, and could make `wait` lose the exit code.
trap 'trap "" TERM; signalled=1; [ -z "$child" ] || pass_on' TERM

interrupt() {
  if [ -n "$interrupted" ]; then
    [ -z "$child" ] || kill -KILL "$child" 2> /dev/null || true
    return 0
  fi
  interrupted=1
  signalled=1
  echo "Ctrl-C: waits until the command has saved and ended; again kills it" >&2
  [ -z "$child" ] || pass_on
}
trap interrupt INT

# Runs a command and returns its exit code: 130 after a Ctrl-C that ended it.
attended() {
  local code=0 again=0
  (trap - TERM; exec "$@") &
  child=$!
  # The signal may have come before the trap knew the child.
  [ -z "$signalled" ] || pass_on
  wait "$child" || code=$?
  if [ -n "$signalled" ]; then
    # The signal interrupted `wait`.
    wait "$child" 2> /dev/null || again=$?
    if [ "$again" -ge 0 ] && [ "$again" -ne 127 ]; then code=$again; fi
  fi
  child=""
  if [ -n "$interrupted" ] && [ "$code" -ne 0 ]; then code=130; fi
  return "$code"
}
