#!/usr/bin/env bash
# Lint and tests in a virtual environment. Arguments go to pytest:
#   bash launch/test.sh                 everything that is not marked slow
#   bash launch/test.sh -m slow         only the long ones
set -euo pipefail
cd "$(dirname "$0")/.."
source launch/environment.sh
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check -r requirements-test.txt
# The compiler for TPUs, in a folder of its own: beside JAX it would be asked for a TPU by every run.
compiler="$venv/libtpu"
[ -d "$compiler" ] || "$venv/bin/python" -m pip install --quiet --disable-pip-version-check \
  --no-deps --target "$compiler" 'libtpu==0.0.52'
"$venv/bin/ruff" check .
"$venv/bin/ruff" format --check .
if [ "$#" -eq 0 ]; then set -- -m "not slow"; fi
JAX_PLATFORMS=cpu PYTHONPATH="$compiler" "$venv/bin/python" -m pytest --numprocesses=2 --dist=worksteal "$@"
