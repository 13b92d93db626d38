"""The tiny policy that ships with the package: worth improving, and what the files say it is."""

import pytest

from configs import quickstart
from speciarl_jax.evaluation.evaluator import Evaluator
from speciarl_jax.experiment.run import prepare
from speciarl_jax.models import load_policy
from speciarl_jax.models.checkpoints import hf_checkpoint


@pytest.fixture(scope="module")
def run():
    return prepare(quickstart.get_config())


@pytest.mark.slow
def test_it_is_right_more_often_than_not_and_errs_and_declines(run):
    evaluator = Evaluator(run)
    judged = evaluator(run.lora)
    labels = {row["label_id"] for row in judged.rows}
    assert {row["style"] for row in judged.rows} == {"twemoji"}
    score = evaluator.score(judged.category_BN)
    assert len(labels) >= 150
    assert score.correctness >= 0.60
    kinds = ("abstain", "wrong", "generic", "specific")
    assert min(score.histogram[name] for name in kinds) > len(judged.rows) // 50


@pytest.mark.slow
def test_it_knows_more_than_it_says(run):
    greedy = Evaluator(run)
    said = greedy.score(greedy(run.lora).category_BN)
    options = run.config.evaluation
    sampler = Evaluator(run, num_rollouts=64, batch_size=options.best_of_batch_size)
    judged = sampler(run.lora, temperature=options.best_of_temperature, top_p=options.best_of_top_p)
    known = sampler.score(judged.category_BN.max(axis=1))
    assert known.hm >= said.hm + 0.10


def test_its_files_are_complete(run):
    folder = load_policy.model_folder("emoji_tiny")
    names = {path.name for path in folder.iterdir()}
    assert {
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "preprocessor_config.json",
    } <= names
    assert hf_checkpoint.read_config(folder) == run.model_config
