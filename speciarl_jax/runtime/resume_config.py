"""What a checkpoint and the run that goes on from it must agree about."""

import json
from collections.abc import Mapping
from typing import Any

import ml_collections
from absl import logging

from speciarl_jax.runtime import renamed

# What may differ between a checkpoint and the run that goes on from it.
_FREE = (
    *("train.steps", "train.log_every", "train.profile_steps"),
    *("checkpoint.", "evaluation.", "data.workers", "mesh."),
    *("verifier.max_unjudged_fraction", "verifier.http_judge.cache", "verifier.http_judge.server."),
    *(
        "data.vision_cache.",
        "rollout.cache_bytes",
        "rollout.max_images_per_chunk",
        "compilation_cache",
    ),
    "train.num_length_buckets",
    "train.samples_",
    "train.num_logged_images",
)


def of_config(config: ml_collections.ConfigDict) -> dict[str, Any]:
    """The keys that a resumed run must agree with, `section.key` -> value."""
    flat: dict[str, Any] = {}

    def visit(prefix, value):
        if isinstance(value, Mapping):
            for key, inner in value.items():
                visit(f"{prefix}{key}.", inner)
        elif not prefix.startswith(_FREE):
            flat[prefix.rstrip(".")] = value

    visit("", json.loads(config.to_json()))
    return flat


def agree(saved: Mapping[str, Any], now: Mapping[str, Any], what: str, allow_change: bool) -> None:
    """Refuses facts that differ, with a diff; or logs it if `allow_change`.

    Raises:
      ValueError: they differ.
    """
    saved = renamed.flat_config(saved)
    lines = [
        f"  {key}: {saved.get(key)!r} -> {value!r}"
        for key, value in now.items()
        if saved.get(key) != value
    ]
    if not lines:
        return
    diff = f"{what} was made by another configuration (checkpoint -> now):\n" + "\n".join(lines)
    if allow_change:
        logging.warning("%s\nthe run goes on with the new values (--allow_config_change)", diff)
        return
    raise ValueError(
        f"{diff}\nuse the old values or another --workdir; to go on with the new values, give "
        "--allow_config_change"
    )
