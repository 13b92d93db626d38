"""A copy of the launchers in which tools have stand-ins."""

import os
import pathlib
import shutil
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
TRAINING = ["--config=configs/quickstart.py", "--workdir=a folder"]


def copy_to(folder):
    """A copy of the scripts, with a virtual environment whose Python prints how it was called."""
    shutil.copytree(ROOT / "launch", folder / "launch")
    shutil.copy(ROOT / "requirements.txt", folder)
    stand_in(folder / ".venv" / "bin", "python", 'printf "python"; printf " %s" "$@"; echo')
    (folder / "tools").mkdir()
    return folder


def stand_in(folder, name, body):
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    path.write_text(f"#!/usr/bin/env bash\n{body}\n")
    path.chmod(0o755)


def environment(checkout, **settings):
    path = os.pathsep.join([str(checkout / "tools"), os.environ["PATH"]])
    kept = {"HOME": os.environ.get("HOME", "/"), "PYTHON": sys.executable}
    return kept | settings | {"PATH": path}


def shell(checkout, script, *args, **settings):
    return subprocess.run(
        ["bash", str(checkout / "launch" / script), *args],
        env=environment(checkout, **settings),
        capture_output=True,
        text=True,
        timeout=60,
    )


def printed(checkout, script, *args, **settings):
    done = shell(checkout, script, *args, **settings)
    assert done.returncode == 0, done.stderr
    return done.stdout
