"""What an installed package holds, and what the tests are installed with."""

import pathlib
import re
import tomllib

import setuptools

from speciarl_jax import predict

ROOT = pathlib.Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def test_predict_finds_its_configurations_where_the_package_is_installed():
    patterns = PROJECT["tool"]["setuptools"]["packages"]["find"]["include"]
    packages = setuptools.find_packages(ROOT, include=patterns)
    assert predict.CONFIGS.relative_to(ROOT).as_posix() in packages
    assert {name.split(".")[0] for name in packages} == {"speciarl_jax", "configs"}


def test_what_the_tests_need_stands_in_one_place():
    assert "test" not in PROJECT["project"]["optional-dependencies"]
    script = (ROOT / "launch" / "test.sh").read_text()
    assert "-r requirements-test.txt" in script
    named = re.findall(r"^[\w-]+", (ROOT / "requirements-test.txt").read_text(), re.M)
    assert {"torch", "pytest", "ruff"} <= set(named)
    assert not [name for name in named if re.search(rf"'{name}[=>]", script)]
