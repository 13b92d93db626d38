"""The sets of `config.evaluation.sets`, asked about by `train` and by `evaluate` alike."""

import dataclasses
import json

import jax
import pytest

from speciarl_jax import evaluate, train
from speciarl_jax.evaluation import comparisons, evaluation_sets, predictions
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
