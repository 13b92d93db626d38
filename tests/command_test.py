"""The command `speciarl`: it lists, refuses and runs programs, and imports no other."""

import os
import pathlib
import subprocess
import sys
import tomllib

import pytest

from speciarl_jax import __main__ as command
from speciarl_jax.runtime import exit_codes

ROOT = pathlib.Path(__file__).resolve().parent.parent
ENTRY = "from speciarl_jax.__main__ import main; main()"


def speciarl(*arguments, cwd=ROOT, before="", after=""):
    """Runs the command as its script does, between `before` and `after`."""
    return subprocess.run(
        [sys.executable, "-c", f"import sys\n{before}\n{ENTRY}\n{after}", *arguments],
        capture_output=True,
        text=True,
        cwd=cwd,
        env=os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)},
    )


@pytest.mark.parametrize("arguments", [(), ("--help",), ("help",)])
def test_all_programs_are_listed_with_what_they_do(arguments):
    done = speciarl(*arguments)
    assert done.returncode == 0, done.stderr
    lines = [line.split(maxsplit=2) for line in done.stdout.splitlines()[2:]]
    assert [line[1] for line in lines[:3]] == ["train", "evaluate", "predict"]
    listed = {name: text for _, name, text in lines}
    modules = {p.stem if p.stem != "__main__" else p.parent.name for p in runnable()}
    assert set(listed) == modules
    assert all(text[0].isupper() and text.endswith(".") for text in listed.values())


def runnable():
    """Files of the package that run as programs, but for the command itself."""
    package = ROOT / "speciarl_jax"
    return [
        path
        for path in package.rglob("*.py")
        if 'if __name__ == "__main__":' in path.read_text() and path != package / "__main__.py"
    ]


def test_the_list_needs_neither_jax_nor_the_programs_and_comes_at_once():
    before = os.times().children_user
    loaded = "import atexit; atexit.register(lambda: print('LOADED', *sorted(sys.modules)))"
    done = speciarl(before=loaded)
    assert done.returncode == 0, done.stderr
    modules = done.stdout.split("LOADED")[1].split()
    ours = {name for name in modules if name.startswith("speciarl_jax")}
    assert ours == {"speciarl_jax", "speciarl_jax.__main__"}
    assert not {"jax", "numpy", "absl", "ml_collections"} & set(modules)
    # Processor time, which other programs on the machine do not lengthen much.
    assert os.times().children_user - before < 1.0


def test_an_unknown_program_is_refused_with_the_known_ones():
    done = speciarl("tarin", "--config=x")
    assert done.returncode == exit_codes.REFUSED == 78
    assert done.stdout == ""
    assert "there is no program 'tarin'" in done.stderr and "speciarl train" in done.stderr


def test_the_named_program_runs_with_the_arguments_behind_its_name(tmp_path):
    table = tmp_path / "birds.csv"
    table.write_text("bird,eagle\nbird,owl\n")
    done = speciarl("build_label_tree", "--csv=birds.csv", "--out=birds.json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("birds.json: 2 labels in 1 groups")
    assert (tmp_path / "birds.json").exists()
    # Of a package with a `__main__`, and its exit code.
    done = speciarl("plan", "--config=configs/quickstart.py", "--topology=v9:2x2")
    assert done.returncode == exit_codes.REFUSED and "plan: " in done.stderr
    done = speciarl("convert", "--workdir=x")
    assert done.returncode == 1 and "give --to=merged|peft|run and --out=FOLDER" in done.stderr


def test_a_configuration_may_import_its_neighbours(tmp_path):
    (tmp_path / "mine.py").write_text("SEED = 1234567\n")
    (tmp_path / "own.py").write_text(
        "import mine\nfrom configs import quickstart\n\n\ndef get_config():\n"
        "    config = quickstart.get_config()\n    config.seed = mine.SEED\n    return config\n"
    )
    done = speciarl("train", "--config=own.py", "--print_config", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert '"seed": 1234567' in done.stdout


def test_the_package_installs_the_command():
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    assert scripts == {"speciarl": f"{command.__name__}:{command.main.__name__}"}


def test_a_refusal_waits_for_no_library_that_only_a_run_needs():
    heavy = {"transformers", "torch", "matplotlib", "grain", "scipy", "pyarrow"}
    code = "import sys, speciarl_jax.train, speciarl_jax.evaluate, speciarl_jax.predict\n"
    code += f"print(*({heavy} & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
    )
    assert (done.returncode, done.stdout.strip()) == (0, ""), done.stderr
