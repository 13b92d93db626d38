"""Provenance of answers: everything that the answers and verdicts of an evaluation depend on.

`Predictions.begin` compares it, so that answers of another configuration are not mixed in. Weights
are identified by checksums over all of their bits, computed on the devices that hold them. So a
file may be renamed or cut into several, and no changed number is missed, except where two changes
to one array cancel out in 32 bits. It costs one pass over the devices' memory.
"""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import jax
import ml_collections
import numpy as np
from flax import nnx
from jax.experimental import multihost_utils

from speciarl_jax.evaluation import predictions
from speciarl_jax.evaluation.predictions import GIVEN, GREEDY
from speciarl_jax.experiment.make_verifier import verifier_options
from speciarl_jax.experiment.run import Run
from speciarl_jax.models import load_policy
from speciarl_jax.runtime import checksum
from speciarl_jax.verifiers.judge import judge_prompt

# Options of verifiers that change no verdict, or whose content is recorded instead.
_FREE = ("cache", "server", "path", "judge_batch_size", "rollouts_at_once")
# Files of a checkpoint folder, besides the weights, that answers depend on.
_SMALL = (
    *("config.json", "preprocessor_config.json", "processor_config.json"),
    *("tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt"),
    *("chat_template.jinja", "chat_template.json"),
)
# Verifiers whose option `prompt` names a prompt.
_JUDGES = ("flax_judge", "http_judge")


def of_part(
    run: Run,
    source: Any,
    policy: Mapping[str, Any],
    *,
    decoding: str = GREEDY,
    num_rollouts: int = 1,
) -> dict[str, Any]:
    """Returns the provenance of the answers of one policy about one data set; JSON-able.

    All processes must call it together.

    Args:
      policy: `of_base(run) | of_adapters(run, lora)`.
      decoding: `GREEDY` or `SAMPLES`.
      num_rollouts: N answers an image.
    """
    config, evaluation = run.config, run.config.evaluation
    sampling = {"answers": num_rollouts}
    if decoding != GREEDY:
        sampling |= {
            "temperature": evaluation.best_of_temperature,
            "top_p": evaluation.best_of_top_p,
        }
    return {
        "policy": dict(policy),
        **_of_images(config, source),
        "max_pixels": config.data.max_pixels,
        "prompt": _hash(run.builder.text),
        "max_tokens": config.rollout.max_tokens,
        "sampling": sampling,
        **of_verdicts(run),
    }


def of_given(judge: Any, source: Any, digest: str, *, num_rollouts: int = 1) -> dict[str, Any]:
    """Returns the provenance of answers that another model gave about one data set; JSON-able.

    How that model was asked is not known, so nothing is said about it.

    Args:
      judge: has `config`, `labels` and `verifier`, as a `Run` has.
      source: images of evaluation.
      digest: of the file with the answers.
      num_rollouts: N answers an image.
    """
    return {
        "policy": {GIVEN: digest},
        **_of_images(judge.config, source),
        "sampling": {"answers": num_rollouts},
        **of_verdicts(judge),
    }


def of_verdicts(judge: Any) -> dict[str, Any]:
    """Returns what verdicts depend on beside the answers: the verifier, and the labels.

    All processes must call it together.

    Args:
      judge: has `config`, `labels` and `verifier`, as a `Run` has.
    """
    return {"verifier": of_verifier(judge), "labels": _of_labels(judge.labels)}


def _of_images(config: ml_collections.ConfigDict, source: Any) -> dict[str, Any]:
    evaluation = config.evaluation
    return {
        "data": {
            "name": config.data.name,
            "options": {**config.data.options.to_dict(), **evaluation.options.to_dict()},
        },
        "images": getattr(source, "fingerprint", len(source)),
        **_contents(source),
        "seed": evaluation.seed,
    }


def _contents(source: Any) -> dict[str, str]:
    found = getattr(source, "content_fingerprint", None)
    return {predictions.CONTENTS: found} if found else {}


def of_base(run: Run) -> dict[str, Any]:
    """Returns the provenance of the frozen weights, tokenizer and image processor.

    The tokens that end a completion are part of it where there are several.

    All processes must call it together.
    """
    folder, model = load_policy.model_folder(run.config.model.path), run.config.model
    return ({"end_ids": list(run.end_ids)} if len(run.end_ids) > 1 else {}) | {
        "weights": _of_weights(run.base),
        "files": {
            name: _hash((folder / name).read_text("utf-8"))
            for name in _SMALL
            if (folder / name).is_file()
        },
        "arithmetic": [model.dtype, model.param_dtype, model.base_weights],
    }


def of_verifier(run: Any) -> dict[str, Any]:
    """Returns the verifier's name and options, a checksum of its weights and of its prompt's text.

    All processes must call it together.

    Args:
      run: a `Run`, or what has its `config` and `verifier`.
    """
    return _of_verifier(run.config, run.config.verifier.name, run.verifier)


def _of_verifier(config: ml_collections.ConfigDict, name: str, verifier: Any) -> dict[str, Any]:
    given = verifier_options(config, name)
    options = {key: value for key, value in given.items() if key not in _FREE}
    if hasattr(verifier, "scorer"):
        # The judge's weights: from a folder, or the policy's own base.
        options["weights"] = _of_weights(verifier.scorer)
    if name in _JUDGES:
        options["prompt"] = _hash(judge_prompt.load(options["prompt"]).text)
    if name == "cascade" and options["judge"]:
        options["judge"] = _of_verifier(config, options["judge"], verifier.fallback)
    return {"name": name, **options}


def of_adapters(run: Run, lora: nnx.State) -> dict[str, Any]:
    """Returns a checksum of adapters and their scale; "none" for the fresh adapters of `run`.

    All processes must call it together.
    """
    if lora is run.lora:
        return {"adapters": "none"}
    model = run.config.model
    return {"adapters": digest_of_adapters(lora), "scale": model.lora_alpha / model.lora_rank}


def digest_of_adapters(lora: nnx.State) -> str:
    """Returns a checksum of adapters: equal for equal bits, wherever they lie.

    All processes must call it together.
    """
    digest = hashlib.sha256()
    for path, variable in sorted(nnx.to_flat_state(lora), key=lambda item: str(item[0])):
        value = variable[...]
        if jax.process_count() > 1:
            value = multihost_utils.process_allgather(value, tiled=True)
        digest.update(f"{path} {value.shape}".encode())
        digest.update(np.ascontiguousarray(value).tobytes())
    return digest.hexdigest()[:32]


def _of_weights(weights: Any) -> str:
    places = [str(path) for path, _ in jax.tree_util.tree_leaves_with_path(weights)]
    sums = [int(x) for x in checksum.of_arrays(weights)]
    return _hash(json.dumps([places, sums]))


def _of_labels(labels: Any) -> str:
    """Hashes the label ids and the names that verdicts use: a tree's, or those a judge is told."""
    if hasattr(labels, "relations"):
        names = [
            sorted((repr(key), int(category)) for key, (category, _) in relation.items())
            for relation in labels.relations
        ]
        opener = labels.opener
        names += [list(opener.expressions), sorted(map(repr, opener.modifiers))]
        names += [sorted(map(repr, opener.frames))]
    else:
        names = list(labels.names)
    return _hash(json.dumps([list(labels.leaf_ids), names]))


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:32]
