"""Every algorithm's configuration trains; what it promises shows in its metrics."""

import dataclasses
import json

import jax
import numpy as np
import pytest
import small_run

import configs
from speciarl_jax import train
from speciarl_jax.experiment import algorithm, validate_config
from speciarl_jax.verifiers.category import Category

# What each must log besides the metrics that all have.
METHODS = {
    "n5": (),
    "single": (),
    "binary": (),
    "static_map:1": (),
    "static_map:2": (),
    "static_map:3": (),
    "label_noise:0.25": ("verify/noise",),
    "grpo_sequence_mean": (),
    "dr_grpo": (),
    "dr_grpo_binary": (),
    "dapo": ("reward/overlong_penalty", "dynamic_sampling/rounds", "sampled/wrong"),
    "dapo_binary": ("reward/overlong_penalty", "dynamic_sampling/filled"),
    "dapo_no_dynamic": ("reward/overlong_penalty",),
    "gspo": (),
    "rloo": (),
    "cispo": (),
    "sapo": ("update/gate",),
    "gmpo": (),
    "reinforce_pp": (),
    "reuse": ("update/importance", "update/importance_capped"),
    "icepop": ("update/importance", "update/mismatch_masked"),
    "rank_aware:0.5": ("update/rank_loss",),
    "brier:0.5": ("reward/brier_penalty",),
    "moving_reference:0.9": (),
    "sft": (),
}
ALL = {
    *("update/loss", "update/entropy", "update/grad_norm", "update/skipped"),
    *("update/skipped_in_a_row", "update/grad_norm_clipped", "update/learning_rate"),
    *("data/images_seen", "data/epoch", "health/gradient_not_finite"),
}
SAMPLED = {
    *("update/clip_frac", "update/approx_kl", "update/ratio", "update/sampler_gap"),
    *("update/sampler_kl", "reward/mean", "reward/zero_std_groups", "rollout/completion_length"),
    *("rollout/truncated", "verify/unjudged", "reward/not_finite", "verify/most_common_answer"),
    *("data/most_common_label", "health/truncated", "health/one_answer"),
    *(f"verify/{category.name.lower()}" for category in Category),
}


@pytest.fixture(scope="module")
def config_of(policy_folder):
    """name of a configuration -> that, on top of a run of two small steps."""

    def make(name, **changes):
        small = {"train__steps": 2, "train__fused": False, "checkpoint__save_every": 9}
        # Room for an answer that is written from a label.
        small |= {"rollout__max_tokens": 24} if name == "sft" else {}
        parent = small_run.small_config(policy_folder, **small | changes)
        load = configs.load
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(configs, "load", lambda n: parent if n == "small" else load(n))
            return configs.load(f"{name}:small")

    return make


@pytest.fixture
def quick_to_compile(compilation_cache):
    """Compilation takes longer than two steps; what programs share is taken from the cache."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


# Those with programs of their own; the others differ from them or from the quickstart by a part
# that is tested alone (losses/methods_test.py).
QUICK = {"dapo", "sft"}


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[] if n in QUICK else [pytest.mark.slow]) for n in METHODS]
)
def test_every_algorithm_trains(run, config_of, quick_to_compile, tmp_path, name):
    config = config_of(name)
    validate_config.check(config, run.mesh)
    algorithm.check(config)
    before = small_run.arrays(run.lora)
    lora, _ = train.train(dataclasses.replace(run, config=config), tmp_path)
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2]
    wanted = ALL | set(METHODS[name]) | (SAMPLED if name != "sft" else set())
    # A gate clips nothing.
    wanted -= {"update/clip_frac"} if name == "sapo" else set()
    if config.loss.kl_coefficient:
        wanted |= {{"loss": "update/kl", "reward": "reward/kl_penalty"}[config.loss.kl_in]}
    for row in rows:
        assert wanted <= row.keys()
        assert all(np.isfinite(value) for value in row.values())
        assert row["update/skipped"] == 0 and row["update/grad_norm"] > 0
        if name != "sft":
            shares = [row[f"verify/{category.name.lower()}"] for category in Category]
            assert sum(shares) == pytest.approx(1, abs=1e-5) and row["verify/unjudged"] == 0
    after = small_run.arrays(lora)
    assert min(np.abs(after[k] - before[k]).max() for k in before) > 1e-4
