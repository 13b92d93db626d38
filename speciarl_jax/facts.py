"""What a part of an evaluation was made with, so that no other configuration is mixed into it."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.experimental import multihost_utils

from speciarl_jax import assemble
from speciarl_jax.predictions import GREEDY

# Options of verifiers that change no verdict, or are known by what they bring.
_FREE = ("cache", "server", "path", "pairs_at_once", "answers_at_once")


def of_part(
    run: assemble.Run,
    source: Any,
    adapters: Mapping[str, Any],
    *,
    decoding: str = GREEDY,
    num_rollouts: int = 1,
) -> dict[str, Any]:
    """Everything that answers and verdicts depend on; JSON-able.

    Args:
      run: policy, verifier and prompt.
      source: the pictures.
      adapters: `of_adapters`.
      decoding: greedy or samples.
      num_rollouts: N.
    """
    config, evaluation = run.config, run.config.evaluation
    sampling = {"answers": num_rollouts}
    if decoding != GREEDY:
        sampling |= {
            "temperature": evaluation.best_of_temperature,
            "top_p": evaluation.best_of_top_p,
        }
    options = assemble.verifier_options(config)
    return {
        "policy": of_base(run) | adapters,
        "data": [
            config.data.name,
            {**config.data.options.to_dict(), **evaluation.options.to_dict()},
        ],
        "pictures": getattr(source, "fingerprint", len(source)),
        "max_pixels": config.data.max_pixels,
        "prompt": _hash(run.builder.text),
        "seed": evaluation.seed,
        "max_tokens": config.rollout.max_tokens,
        "sampling": sampling,
        "verifier": [
            config.verifier.name,
            {name: value for name, value in options.items() if name not in _FREE},
        ],
        "labels": _of_labels(run.labels),
    }


def of_base(run: assemble.Run) -> dict[str, Any]:
    """The frozen weights, wherever their folder lies."""
    folder, model = assemble.model_folder(run.config.model.path), run.config.model
    return {
        "files": {path.name: path.stat().st_size for path in sorted(folder.glob("*.safetensors"))},
        "config": _hash((folder / "config.json").read_text()),
        "weights": [model.dtype, model.param_dtype, model.base_weights],
    }


def of_adapters(run: assemble.Run, lora: nnx.State) -> dict[str, Any]:
    """Adapters by their numbers; all processes must call it together.

    Fresh adapters add nothing to the base, and so are none.
    """
    if lora is run.lora:
        return {"adapters": "none"}
    digest = hashlib.sha256()
    for path, variable in sorted(nnx.to_flat_state(lora), key=lambda item: str(item[0])):
        value = variable[...]
        if jax.process_count() > 1:
            value = multihost_utils.process_allgather(value, tiled=True)
        digest.update(f"{path} {value.shape}".encode())
        digest.update(np.ascontiguousarray(value).tobytes())
    model = run.config.model
    return {"adapters": digest.hexdigest()[:32], "scale": model.lora_alpha / model.lora_rank}


def _of_labels(labels: Any) -> str:
    """The names that verdicts go by: those around each label, or those a judge is told."""
    if hasattr(labels, "relations"):
        names = [
            sorted((repr(key), int(category)) for key, (category, _) in relation.items())
            for relation in labels.relations
        ]
    else:
        names = list(labels.names)
    return _hash(json.dumps([list(labels.leaf_ids), names]))


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:32]
