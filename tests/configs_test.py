"""The configurations: every key is in base.py, and an experiment is its differences."""

import ast
import json
import pathlib

import ml_collections
import pytest

from configs import base, label_noise, quickstart

FOLDER = pathlib.Path(__file__).resolve().parent.parent / "configs"


def flat(config):
    found = {}

    def visit(prefix, value):
        if isinstance(value, dict):
            for key, inner in value.items():
                visit(f"{prefix}{key}.", inner)
        else:
            found[prefix.rstrip(".")] = value

    visit("", json.loads(config.to_json()))
    return found


def test_the_quickstart_states_only_what_differs_from_the_base():
    before, after = flat(base.get_config()), flat(quickstart.get_config())
    assert before.keys() == after.keys()
    tree = ast.parse((FOLDER / "quickstart.py").read_text())
    stated = {
        ast.unparse(node.targets[0]).removeprefix("config.")
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]).startswith("config.")
    }
    assert stated == {key for key in after if after[key] != before[key]}


def test_a_key_that_is_not_in_the_base_is_refused():
    config = base.get_config()
    with pytest.raises(AttributeError, match="batch_sise"):
        config.train.batch_sise = 3
    config.loss.options = ml_collections.ConfigDict({"other": 1.0})
    assert config.loss.options.other == 1.0


def test_label_noise_takes_its_rate_from_the_command_line():
    quiet, noisy = flat(quickstart.get_config()), flat(label_noise.get_config("0.25"))
    assert {k: noisy[k] for k in noisy if noisy[k] != quiet[k]} == {"label_noise.rate": 0.25}
    assert label_noise.get_config().label_noise.rate == 0.1
