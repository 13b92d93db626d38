# Sourced by the scripts beside it: `--dry_run` as the first argument only prints the commands.
# shellcheck shell=bash
dry_run=""
if [ "${1:-}" = "--dry_run" ]; then dry_run=1; shift; fi

# Runs a command, or prints it quoted for a shell.
run() {
  if [ -n "$dry_run" ]; then
    printf '%q ' "$@"
    echo
  else
    "$@"
  fi
}
