# shellcheck shell=bash
# Sourced by the scripts beside it: makes the virtual environment `$venv` if needed and installs
# what the package needs. VENV chooses another folder, PYTHON another interpreter (3.11 or newer).
# ACCELERATOR=tpu, cuda12 or cuda13 installs JAX's libraries for it as well, and BUCKET=1 what
# gs:// paths need.
# shellcheck shell=bash
venv="${VENV:-.venv}"
python="${PYTHON:-python3}"
if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
  echo "Python 3.11 or newer is needed, $("$python" --version 2>&1) was found; set PYTHON=..." >&2
  exit 1
fi
# One that was left half-made has no pip yet; making it again completes it.
"$venv/bin/python" -m pip --version >/dev/null 2>&1 || "$python" -m venv "$venv"
packages=(-r requirements.txt)
if [ -n "${ACCELERATOR:-}" ]; then
  packages+=("jax[$ACCELERATOR]==$(sed -n 's/^jax==//p' requirements.txt)")
fi
if [ -n "${BUCKET:-}" ]; then packages+=(gcsfs google-cloud-storage); fi
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check "${packages[@]}"
