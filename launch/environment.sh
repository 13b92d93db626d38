# shellcheck shell=bash
# Sourced by the scripts beside it: makes the virtual environment `$venv` if needed and installs the
# requirements of the package. VENV chooses another folder, PYTHON another interpreter (3.11 or
# newer). ACCELERATOR=tpu, cuda12 or cuda13 also installs JAX's libraries for it, and BUCKET=1 the
# packages for gs:// paths.
venv="${VENV:-.venv}"
python="${PYTHON:-python3}"
if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
  echo "Python 3.11 or newer is needed, $("$python" --version 2>&1) was found; set PYTHON=..." >&2
  exit 1
fi
# An environment without pip was left incomplete; making it again completes it.
"$venv/bin/python" -m pip --version >/dev/null 2>&1 || "$python" -m venv "$venv"
packages=(-r requirements.txt)
if [ -n "${ACCELERATOR:-}" ]; then
  packages+=("jax[$ACCELERATOR]==$(sed -n 's/^jax==//p' requirements.txt)")
fi
if [ -n "${BUCKET:-}" ]; then packages+=(gcsfs google-cloud-storage); fi
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check "${packages[@]}"
