# Sourced by the scripts beside it: `--dry_run` as the first argument prints what would be run.
# shellcheck shell=bash
dry_run=""
if [ "${1:-}" = "--dry_run" ]; then dry_run=1; shift; fi

# Runs a command, or prints it in a form that a shell would take.
run() {
  if [ -n "$dry_run" ]; then
    printf '%q ' "$@"
    echo
  else
    "$@"
  fi
}
