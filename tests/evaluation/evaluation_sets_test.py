"""The sets of `config.evaluation.sets`, asked about by `train` and by `evaluate` alike."""

import dataclasses
import json
import types

import jax
import own_images
import pytest

from speciarl_jax import evaluate, train
from speciarl_jax.evaluation import comparisons, evaluation_sets, predictions
from speciarl_jax.experiment.run import prepare
from speciarl_jax.runtime import plugins
from speciarl_jax.runtime.wall_clock import RunClock
from speciarl_jax.training import policy_sources

pytestmark = pytest.mark.usefixtures("shared_programs")
OPTIONS = {"split": "held_out", "difficulty": "easy", "image_size": 24, "concept_set": "benchmark"}


@pytest.fixture
def config(small_config):
    """A configuration with two sets that training evaluates, and nothing else."""
    config = small_config(
        evaluation__before=False, evaluation__report=False, evaluation__in_training="sets"
    )
    for name, domains in (("plants", ("plant",)), ("vehicles", ("vehicle",))):
        options = OPTIONS | {"domains": domains, "views": 1}
        with config.unlocked():
            config.evaluation.sets[name] = {"name": "emoji", "options": options}
    return config


def test_training_evaluates_the_sets_alone_and_as_evaluate_does(config, tmp_path, monkeypatch):
    trained, made = tmp_path / "trained", tmp_path / "base"
    for folder in (trained, made):
        folder.mkdir()

    def without_steps(run, workdir, **_):
        return jax.tree.map(lambda x: x + 0.5, run.lora), 0.0

    monkeypatch.setattr(train, "train", without_steps)
    train.train_between_evaluations(config, trained, RunClock(), False)
    store = predictions.Predictions(made)
    plan = evaluate.Plan(
        policies=policy_sources.named(["base"], made),
        sets=evaluate.data_sets(config, []),
        prompts=["base"],
        own_data=False,
    )
    evaluate.evaluate(plan, store)
    mine, theirs = (predictions.read_provenance(folder) for folder in (trained, made))
    assert set(mine) == {"trained/plants/base/greedy", "trained/vehicles/base/greedy"}
    for name in ("plants", "vehicles"):
        a, b = theirs[f"base/{name}/base/greedy"], mine[f"trained/{name}/base/greedy"]
        differ = set(comparisons.unlike(a, b, [*a]))
        assert differ == {"policy.adapters", "policy.scale"}
        assert a["policy"]["adapters"] == "none"
    assert (
        mine["trained/plants/base/greedy"]["images"]
        != mine["trained/vehicles/base/greedy"]["images"]
    )
    summary = json.loads((trained / "summary.json").read_text())
    assert {"trained/plants", "trained/vehicles"} <= set(summary) and "base" not in summary
    assert not list(trained.glob("report*")) and not (trained / "figures").exists()


@pytest.mark.parametrize(("where", "count"), [("set", 2), ("sets", 0)])
def test_what_training_cannot_evaluate_is_refused(config, run, where, count):
    with config.unlocked():
        config.evaluation.in_training = where
        config.evaluation.sets = dict(list(config.evaluation.sets.items())[:count])
    changed = dataclasses.replace(run, config=config)
    with pytest.raises(ValueError, match=f"in_training is '{where}' .* has {count} sets"):
        evaluation_sets.evaluators(changed)


def test_images_of_training_among_those_of_evaluation_are_told(config, small_config, caplog):
    """In a set, and among a data set's own images; not of another split, another place or kind."""
    run = prepare(config)
    options = config.data.options.to_dict()
    some = {"name": "emoji", "options": options}
    with config.unlocked():
        config.evaluation.sets["seen"] = some
        del config.evaluation.sets["plants"]
    count = len(sources_of(some))
    run = dataclasses.replace(run, config=config)
    evaluation_sets.evaluators(run)
    (said,) = warnings_of(caplog)
    assert said.startswith(f"{count} of the {count} images of config.evaluation.sets.seen ")
    caplog.clear()
    own = small_config(evaluation__options={"split": options["split"]})
    evaluation_sets.evaluators(prepare(own))
    (said,) = warnings_of(caplog)
    assert "of config.evaluation.options are images of training" in said
    caplog.clear()
    evaluation_sets.evaluators(prepare(small_config()))
    assert not warnings_of(caplog)


def warnings_of(caplog):
    return [record.message for record in caplog.records if "images of training" in record.message]


def sources_of(part):
    return plugins.find("data", part["name"], "Source")(seed=0, **part["options"])


def test_the_same_name_in_another_folder_is_another_image(tmp_path):
    for name in ("train", "test"):
        own_images.fill(tmp_path / name, 24, 24)
    # Relative names are the same in both.
    train, test = (
        plugins.find("data", "folder", "Source")(seed=0, path=str(tmp_path / name), part="all")
        for name in ("train", "test")
    )
    found = types.SimpleNamespace(
        train_source=train,
        config=types.SimpleNamespace(
            data=types.SimpleNamespace(name="folder", options={"path": str(tmp_path / "train")})
        ),
    )
    count = evaluation_sets.num_trained_on
    assert count(found, "folder", {"path": str(tmp_path / "test")}, test) == 0
    assert count(found, "folder", {"path": str(tmp_path / "train")}, train) == len(train) > 0
    assert count(found, "table", {"path": str(tmp_path / "train")}, train) == 0
