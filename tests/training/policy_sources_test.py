"""Which policy a command line means: the file system comes before the signs in a path."""

import json
import pathlib
import shutil

import pytest

from speciarl_jax.models import load_policy
from speciarl_jax.training import policy_sources


@pytest.fixture
def places(tmp_path, policy_folder, small_config, monkeypatch):
    """Folders with signs in their paths, below the working folder: two policies and two runs."""
    for place in ("model", "v=2", "a=b@3/model", "m@20"):
        shutil.copytree(policy_folder, tmp_path / place)
    for place in ("run", "user@host/run", "run@7", "x=run"):
        (tmp_path / place / "checkpoints").mkdir(parents=True)
        (tmp_path / place / "config.json").write_text(small_config().to_json())
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def steps(monkeypatch):
    """The places and steps whose adapters were asked for."""
    asked = []
    monkeypatch.setattr(
        policy_sources,
        "trained",
        lambda mesh, lora, workdir, step, base: asked.append((str(workdir), step)),
    )
    monkeypatch.setattr(policy_sources, "base_of", lambda run: None)
    return asked


@pytest.mark.parametrize(
    "spec, name, place",
    [
        ("model", "model", "model"),
        ("mine=model", "mine", "model"),
        ("v=2", "v=2", "v=2"),
        ("new=v=2", "new", "v=2"),
        ("./v=2", "v=2", "./v=2"),
        ("a=b@3/model", "model", "a=b@3/model"),
        ("mine=a=b@3/model", "mine", "a=b@3/model"),
        ("m@20", "m@20", "m@20"),
        ("mine=m@20", "mine", "m@20"),
        ("emoji_tiny", "emoji_tiny", "emoji_tiny"),
        ("small=emoji_tiny", "small", "emoji_tiny"),
    ],
)
def test_a_checkpoint_is_found_whatever_signs_its_path_has(places, spec, name, place):
    (policy,) = policy_sources.named([spec], places)
    assert (policy.name, policy.model) == (name, {"path": place})


@pytest.mark.parametrize(
    "spec, name, place, step",
    [
        ("run", "run", "run", None),
        ("run@20", "run_step_20", "run", 20),
        ("mine=run@20", "mine", "run", 20),
        ("user@host/run", "run", "user@host/run", None),
        ("user@host/run@20", "run_step_20", "user@host/run", 20),
        ("mine=user@host/run@20", "mine", "user@host/run", 20),
        # A folder of this very name, and its own step.
        ("run@7", "run@7", "run@7", None),
        ("run@7@20", "run@7_step_20", "run@7", 20),
        ("x=run", "x=run", "x=run", None),
        ("x=run@20", "x=run_step_20", "x=run", 20),
    ],
)
def test_a_run_is_found_whatever_signs_its_path_has(places, steps, run, spec, name, place, step):
    (policy,) = policy_sources.named([spec], places)
    policy.adapters(run)
    assert (policy.name, steps) == (name, [(place, step)])


@pytest.mark.parametrize(
    "spec, said",
    [
        ("v=3", "'v=3' is no policy"),
        ("user@host/away", "behind @ stands the step of a checkpoint"),
        ("=model", "name must not be empty"),
        ("a/b=model", "name must not be empty or hold a slash"),
        ("away@20", "'away@20' is no policy"),
    ],
)
def test_what_is_nowhere_is_refused(places, spec, said):
    with pytest.raises(ValueError, match=said):
        policy_sources.named([spec], places)


@pytest.mark.parametrize("name", ["base", "trained", "best"])
def test_a_folder_is_no_word_of_the_command_line(places, policy_folder, name):
    """Where one folder is asked for. A list of policies keeps its words; ./base is the folder."""
    shutil.copytree(policy_folder, places / name)
    assert policy_sources.of_path(name).model == {"path": name}
    if name != "best":
        (policy,) = policy_sources.named([name], places)
        assert policy.model == {}
    (policy,) = policy_sources.named([f"./{name}"], places)
    assert policy.model == {"path": f"./{name}"}


def adapter(folder: pathlib.Path, base: str) -> pathlib.Path:
    folder.mkdir()
    settings = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "base_model_name_or_path": base}
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    return folder


@pytest.mark.parametrize(
    "base, path",
    [
        ("model", "model"),
        ("emoji_tiny", str(load_policy.SHIPPED / "emoji_tiny")),
        ("Qwen/Qwen2.5-VL-3B-Instruct", None),
        ("no name of a hub: //", None),
        ("", None),
    ],
)
def test_an_adapter_goes_on_the_base_that_it_names_if_that_is_here(places, base, path):
    (policy,) = policy_sources.named([str(adapter(places / "adapter", base))], places)
    want = {"lora_rank": 2, "lora_alpha": 4.0, "lora_targets": ("decoder",)}
    want |= {"path": path} if path else {}
    assert policy.model == want


def test_a_base_of_the_hub_is_found_in_its_cache(places, policy_folder, monkeypatch):
    repository = places / "cache" / "models--org--small"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("abc123")
    shutil.copytree(policy_folder, repository / "snapshots" / "abc123")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(places / "cache"))
    (policy,) = policy_sources.named([str(adapter(places / "adapter", "org/small"))], places)
    assert policy.model["path"] == str(repository / "snapshots" / "abc123")
