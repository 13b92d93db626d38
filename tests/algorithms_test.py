"""Every algorithm's configuration trains; what it promises shows in its metrics."""

import dataclasses
import json

import jax
import numpy as np
import pytest
import small_run

import configs
from speciarl_jax import assemble, train

# What each must log besides the metrics that all have.
METHODS = {
    "n5": (),
    "single": (),
    "binary": (),
    "static_map:1": (),
    "static_map:2": (),
    "static_map:3": (),
    "label_noise:0.25": ("verify/noise",),
    "grpo_sequence_mean": ("update/kl",),
    "dr_grpo": (),
    "dr_grpo_binary": (),
    "dapo": ("reward/overlong_penalty", "dynamic_sampling/rounds", "sampled/wrong"),
    "dapo_binary": ("reward/overlong_penalty", "dynamic_sampling/filled"),
    "dapo_no_dynamic": ("reward/overlong_penalty",),
    "gspo": (),
    "rloo": ("reward/kl_penalty",),
    "reuse": ("update/importance", "update/importance_capped", "update/kl"),
    "sft": (),
}
ALL = {
    *("update/loss", "update/entropy", "update/gradient_norm", "update/skipped"),
    *("update/skipped_in_a_row",),
}
SAMPLED = {
    *("update/clip_fraction", "update/approx_kl", "update/ratio", "update/sampler_gap"),
    *("update/sampler_kl", "reward/mean", "reward/groups_without_signal", "rollout/length"),
    *("rollout/truncated", "verify/wrong", "verify/specific", "verify/unverified"),
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


# Those that differ from another one by a number or by what is tested alone.
SLOW = {"n5", "static_map_2", "static_map_3", "dr_grpo_binary", "dapo_binary", "grpo_sequence_mean"}


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.slow] if n in SLOW else []) for n in METHODS]
)
def test_every_algorithm_trains(run, config_of, quick_to_compile, tmp_path, name):
    config = config_of(name)
    assemble.check(config, run.mesh)
    assemble.try_parts(config)
    before = small_run.arrays(run.lora)
    lora, _ = train.train(dataclasses.replace(run, config=config), tmp_path, lambda: None)
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2]
    wanted = ALL | set(METHODS[name]) | (SAMPLED if name != "sft" else set())
    for row in rows:
        assert wanted <= row.keys()
        assert all(np.isfinite(value) for value in row.values())
        assert row["update/skipped"] == 0 and row["update/gradient_norm"] > 0
    after = small_run.arrays(lora)
    assert min(np.abs(after[k] - before[k]).max() for k in before) > 1e-4
