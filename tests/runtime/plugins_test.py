"""A name in the configuration is the name of a module."""

import pytest

from speciarl_jax.data import emoji
from speciarl_jax.rl import rewards
from speciarl_jax.rl.losses import grpo
from speciarl_jax.rl.rewards import best_prediction
from speciarl_jax.runtime import plugins
from speciarl_jax.verifiers import taxonomy


@pytest.mark.parametrize(
    "room, name, attribute, found",
    [
        ("data", "emoji", "Source", emoji.Source),
        ("verifiers", "taxonomy", "create", taxonomy.create),
        ("rl.rewards", "best_prediction", "reward", best_prediction.reward),
        ("rl.losses", "grpo", "policy_loss", grpo.policy_loss),
    ],
)
def test_a_name_finds_the_part_of_its_module(room, name, attribute, found):
    assert plugins.find(room, name, attribute) is found


@pytest.mark.parametrize(
    "room, name, attribute, choice",
    [
        ("data", "photos", "Source", "emoji"),
        ("verifiers", "oracle", "create", "taxonomy"),
        ("rl.rewards", "", "reward", "best_prediction"),
        ("rl.losses", "../grpo", "policy_loss", "grpo"),
        ("rl.losses", "grpo.policy_loss", "policy_loss", "grpo"),
        # Modules of the room that are no such part.
        ("data", "augment", "Source", "emoji"),
        ("rl.losses", "kl", "policy_loss", "grpo"),
        ("verifiers", "category", "create", "taxonomy"),
    ],
)
def test_a_name_without_the_part_is_refused_with_the_choices(room, name, attribute, choice):
    with pytest.raises(ValueError) as error:
        plugins.find(room, name, attribute)
    said = str(error.value)
    assert said.startswith(f"{name!r} is no choice for {room}")
    choices = said.split("[")[1].split("]")[0]
    assert repr(choice) in choices and repr(name) not in choices
    assert f"speciarl_jax/{room.replace('.', '/')}/{name}.py" in said and repr(attribute) in said


def test_a_new_file_is_found_without_a_registry(tmp_path, monkeypatch):
    (tmp_path / "of_this_test.py").write_text("def reward():\n    return 42\n")
    monkeypatch.setattr(rewards, "__path__", [*rewards.__path__, str(tmp_path)])
    assert plugins.find("rl.rewards", "of_this_test", "reward")() == 42


def test_a_function_of_a_file_is_returned_and_what_is_none_is_refused(tmp_path):
    path = tmp_path / "mine.py"
    with pytest.raises(ValueError, match="there is no study .*mine.py"):
        plugins.from_file(path, "get_study", "study")
    path.write_text("def get_study():\n    return 42\n")
    assert plugins.from_file(path, "get_study", "study")() == 42
    with pytest.raises(ValueError, match="is no configuration; it needs a function get_config"):
        plugins.from_file(str(path), "get_config", "configuration")
