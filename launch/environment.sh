# shellcheck shell=bash
# Sourced by the scripts beside it: makes the virtual environment `$venv` if needed and installs
# what the package needs. VENV chooses another folder, PYTHON another interpreter (3.11 or newer).
venv="${VENV:-.venv}"
python="${PYTHON:-python3}"
if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
  echo "Python 3.11 or newer is needed, $("$python" --version 2>&1) was found; set PYTHON=..." >&2
  exit 1
fi
[ -x "$venv/bin/python" ] || "$python" -m venv "$venv"
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check -r requirements.txt
