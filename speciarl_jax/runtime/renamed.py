"""Names that earlier versions wrote into files, and what they are called now: the one such table.

Configurations, checkpoints, metrics and results of earlier runs go through it where they are read,
so that those runs still resume, evaluate, convert and show.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any

# Keys of configurations.
CONFIG = {
    "data.broken_images": "data.on_decode_error",
    "data.vision_cache.pictures": "data.vision_cache.images_per_device",
    "loss.importance_cap": "loss.tis_cap",
    "loss.kl_place": "loss.kl_in",
    "loss.old_logp": "loss.old_logprobs",
    "rollout.chunk_pictures": "rollout.max_images_per_chunk",
    "rollout.shrink": "rollout.num_compactions",
    "train.answer_widths": "train.num_length_buckets",
    "train.passes": "train.ppo_epochs",
    "train.samples_pictures": "train.num_logged_images",
    "verifier.chunks": "verifier.num_chunks",
    "verifier.flax_judge.require_think": "verifier.flax_judge.tags",
    "verifier.http_judge.require_think": "verifier.http_judge.tags",
    "verifier.options.require_think": "verifier.options.tags",
    "verifier.flax_judge.answers_at_once": "verifier.flax_judge.rollouts_at_once",
    "verifier.flax_judge.pairs_at_once": "verifier.flax_judge.judge_batch_size",
    "verifier.http_judge.server.patience": "verifier.http_judge.server.give_up_after",
    "verifier.max_unverified": "verifier.max_unjudged_fraction",
    "verifier.min_verified": "verifier.min_judged_fraction",
    # Not a key of its own: what a checkpoint remembers of the images.
    "data.pictures": "data.images",
}
# Keys that are no more.
REMOVED = {
    "verifier.http_judge.server.backoff",
    "verifier.http_judge.server.max_backoff",
}
# Name of a file -> its earlier name.
FILES = {"predictions_provenance.json": "predictions_facts.json"}
METRICS = {
    "data/left_out": "data/skipped",
    "reward/groups_without_signal": "reward/zero_std_groups",
    "rollout/length": "rollout/completion_length",
    "sampled/unverified": "sampled/unjudged",
    "time/wait": "time/device_idle",
    "update/clip_fraction": "update/clip_frac",
    "update/gradient_norm": "update/grad_norm",
    "verify/groups_left_out": "verify/groups_dropped",
    "verify/unverified": "verify/unjudged",
}
_TAGS = {True: "think", False: "answer"}
# New key of a configuration -> its values.
VALUES = {
    "checkpoint.best_metric": METRICS,
    "data.on_decode_error": {"stop": "raise", "leave_out": "skip"},
    "loss.old_logprobs": {"sampler": "rollout", "trainer": "recomputed"},
    "train.objective": {"reward": "rl", "labels": "sft"},
    "verifier.flax_judge.tags": _TAGS,
    "verifier.http_judge.tags": _TAGS,
    "verifier.options.tags": _TAGS,
}
# Key that earlier versions lacked -> the value as which they behaved.
ADDED = {
    "advantage.std_over": "group",
    "data.options.label_path_separator": "",
    "data.options.split": "",
    "evaluation.before": True,
    "evaluation.every": 0,
    "evaluation.images": 256,
    "evaluation.in_training": "own",
    "evaluation.report": True,
    "evaluation.verifier.name": "",
    "evaluation.weights.preset": "",
    "loss.entropy_coefficient": 0.0,
    "loss.kl_decay_steps": 0,
    "loss.kl_unlabelled": 0.0,
    "loss.kl_warmup_steps": 0,
    "loss.mismatch_high": 5.0,
    "loss.mismatch_low": 0.5,
    "loss.mismatch_mask": "none",
    "loss.rank_coefficient": 0.0,
    "loss.reference_decay": 1.0,
    "loss.tis_level": "token",
    "model.lora_targets": ["decoder"],
    "reward.brier_weight": 0.0,
    "reward.consensus_confidence": 0.0,
    "reward.information.kind": "share",
    "reward.information.strength": 0.0,
    "rollout.decode_weights": "param_dtype",
    "rollout.kv_cache": "dtype",
    "train.ahead": 0,
    "train.max_correctness_drop": 0.0,
    "train.stop_after": 0,
    "verifier.cascade.judge": "",
    "verifier.flax_judge.calibration": "",
    "verifier.http_judge.identity": None,
    "verifier.http_judge.server.start_timeout": 0.0,
}


def config(values: Mapping[str, Any]) -> dict[str, Any]:
    """Translates a configuration of nested sections, as `config.json` holds it.

    Keys that it lacks because it is older have the values as which it behaved (`ADDED`), where it
    has the first section of their path.
    """

    def visit(prefix, section):
        found = {}
        for key, value in section.items():
            path = CONFIG.get(prefix + key, prefix + key)
            if path in REMOVED:
                continue
            value = visit(f"{path}.", value) if isinstance(value, Mapping) else _value(path, value)
            found[path.removeprefix(prefix)] = value
        return found

    found = visit("", values)
    for path, value in ADDED.items():
        top, *sections, key = path.split(".")
        # Options of sources have defaults, and not every source has all of them.
        if top in found and sections != ["options"]:
            inner = functools.reduce(
                lambda part, name: part.setdefault(name, {}), sections, found[top]
            )
            inner.setdefault(key, value)
    return found


def flat_config(values: Mapping[str, Any]) -> dict[str, Any]:
    """Translates a configuration whose keys are dotted paths, as checkpoints hold it.

    Keys that it lacks because it is older have the values as which it behaved (`ADDED`).
    """
    paths = {CONFIG.get(key, key): value for key, value in values.items()}
    return ADDED | {path: _value(path, value) for path, value in paths.items()}


def metrics(row: Mapping[str, Any]) -> dict[str, Any]:
    """Translates the names of a row of `metrics.jsonl`."""
    return {METRICS.get(name, name): value for name, value in row.items()}


def results(values: Any) -> Any:
    """Translates `metrics.json`, or what a part of an evaluation was made with."""
    return _renamed(values, lambda key: "images" if key == "pictures" else key)


def _value(path: str, value: Any) -> Any:
    known = VALUES.get(path, {})
    return known.get(value, value) if isinstance(value, str | bool) else value


def _renamed(values: Any, name: Callable[[str], str]) -> Any:
    if isinstance(values, Mapping):
        return {name(key): _renamed(value, name) for key, value in values.items()}
    if isinstance(values, list):
        return [_renamed(value, name) for value in values]
    return values
