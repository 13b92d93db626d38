"""What the documents name exists: linked files, images, configuration keys, modules, commands."""

import pathlib
import re

import pytest

from configs import base, quickstart_sft
from speciarl_jax.__main__ import programs

ROOT = pathlib.Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
of_page = pytest.mark.parametrize("path", PAGES, ids=[path.name for path in PAGES])


def has(section, parts):
    """Whether a configuration has a key; `options` and `sets` may hold any."""
    for part in parts:
        if part not in section:
            return False
        section = section[part]
        if part in ("options", "sets"):
            return True
    return True


@of_page
def test_links_lead_somewhere(path):
    links = re.findall(r"\]\(([^)#\s]+)", path.read_text())
    inside = [link for link in links if not re.match(r"\w+:", link)]
    assert not [link for link in inside if not (path.parent / link).exists()]


@of_page
def test_keys_that_a_page_names_exist(path):
    named = re.findall(r"(?<![\w/])config((?:\.[a-z_0-9]+)+)", path.read_text())
    wholes = [base.get_config(), quickstart_sft.get_config()]
    for key in named:
        if key != ".json":  # the file
            assert any(has(whole, key[1:].split(".")) for whole in wholes), f"config{key}"


@of_page
def test_programs_that_a_page_starts_exist(path):
    text = path.read_text()
    named = re.findall(r"python -m (speciarl_jax[\w.]*\w|scripts\.\w+)", text)
    for module in named:
        file = ROOT / module.replace(".", "/")
        assert file.with_suffix(".py").is_file() or (file / "__main__.py").is_file(), module
    started = re.findall(r"^ {4}speciarl (\w+)", text, re.M)
    assert set(started) <= set(programs())


def test_the_readme_is_short_and_its_images_are_small():
    readme = ROOT / "README.md"
    assert len(readme.read_text().splitlines()) <= 150
    images = list((ROOT / "docs" / "images").iterdir())
    assert images and sum(image.stat().st_size for image in images) < 500_000
    assert all(f"docs/images/{image.name}" in readme.read_text() for image in images)
