"""What something on disk was made with, and how that differs from what is asked for now.

Checkpoints carry the fingerprint of their run's configuration (`of_config`). Evaluations carry the
provenance of their answers (`evaluation/provenance.py`). Both are compared by `differences`.
"""

import json
from collections.abc import Mapping
from typing import Any

import ml_collections
from absl import logging

from speciarl_jax.runtime import renamed

# Keys, or beginnings of keys, that may change between a checkpoint and the run that resumes it.
_FREE = (
    *("train.steps", "train.log_every", "train.profile_steps"),
    *("checkpoint.", "evaluation.", "logging.", "mesh."),
    *("data.workers", "data.max_decoded_pixels"),
    *("verifier.max_unjudged_fraction", "verifier.http_judge.cache", "verifier.http_judge.server."),
    *("data.vision_cache.", "rollout.cache_bytes", "rollout.max_images_per_chunk"),
    *("compilation_cache", "train.num_length_buckets"),
    *("train.samples_", "train.num_logged_images"),
    *("train.stop_after", "train.max_correctness_drop"),
)
# Verifiers whose options are a section of their name.
_VERIFIERS = ("cascade", "flax_judge", "http_judge")

# Key of the fingerprint of the frozen weights (`models/stored_weights.py`).
BASE_WEIGHTS = "model.base_fingerprint"
# Key of what a fingerprint says of the contents of images.
CONTENTS = "data.image_contents"
# Keys that the fingerprints of earlier versions lack; a run goes on where one is missing.
_ADDED = (BASE_WEIGHTS, CONTENTS)


def of_config(config: ml_collections.ConfigDict) -> dict[str, Any]:
    """Returns the keys that a resumed run must agree with, `section.key` -> JSON-able value.

    Options of verifiers that the run does not ask are none of them.
    """
    flat: dict[str, Any] = {}
    values = json.loads(config.to_json())
    asked = {values["verifier"]["name"], values["verifier"].get("cascade", {}).get("judge")}
    free = _FREE + tuple(f"verifier.{name}." for name in _VERIFIERS if name not in asked)

    def visit(prefix, value):
        if isinstance(value, Mapping):
            for key, inner in value.items():
                visit(f"{prefix}{key}.", inner)
        elif not prefix.startswith(free):
            flat[prefix.rstrip(".")] = value

    visit("", values)
    return flat


def differences(saved: Any, now: Any, path: str = "") -> dict[str, tuple[Any, Any]]:
    """Compares two JSON-able values, mappings key by key.

    Returns:
      Path of a differing value, its keys joined by dots -> (saved, now); None stands for a value
      that is missing.
    """
    if not (isinstance(saved, Mapping) and isinstance(now, Mapping)):
        return {} if saved == now else {path: (saved, now)}
    found = {}
    for key in sorted(saved.keys() | now.keys()):
        found |= differences(saved.get(key), now.get(key), f"{path}.{key}" if path else key)
    return found


def diff(found: Mapping[str, tuple[Any, Any]]) -> str:
    """Writes `differences` one a line, as error messages show them."""
    return "\n".join(f"  {key}: {was!r} -> {now!r}" for key, (was, now) in found.items())


def check(saved: Mapping[str, Any], now: Mapping[str, Any], what: str, allow_change: bool) -> None:
    """Refuses a checkpoint of another configuration, or logs the difference if `allow_change`.

    Args:
      saved: fingerprint in the checkpoint; may have the key names of an earlier version.
      now: fingerprint of this run. Keys that only `saved` has are ignored.
      what: the checkpoint, as the message calls it.

    Raises:
      ValueError: the fingerprints differ; shows both values of each key, and the remedies.
    """
    saved = renamed.flat_config(saved)
    now = {key: value for key, value in now.items() if key in saved or key not in _ADDED}
    found = differences({key: saved.get(key) for key in now}, now)
    if not found:
        return
    said = f"{what} was made by another configuration (checkpoint -> now):\n{diff(found)}"
    if allow_change:
        logging.warning("%s\nthe run goes on with the new values (--allow_config_change)", said)
        return
    raise ValueError(
        f"{said}\nuse the old values or another --workdir; to go on with the new values, give "
        "--allow_config_change"
    )
