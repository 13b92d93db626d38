"""Makes the verifier that a configuration chooses, and tells it what it has to know of the data."""

import inspect
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import ml_collections
import numpy as np

from speciarl_jax.data import images
from speciarl_jax.data import tokenizer as tokenizer_lib
from speciarl_jax.models import load_policy
from speciarl_jax.models.vision_language import VisionLanguageModel
from speciarl_jax.runtime import plugins, sharding
from speciarl_jax.verifiers import flax_judge
from speciarl_jax.verifiers.base import HostVerifier


def verifier_options(
    config: ml_collections.ConfigDict, name: str | None = None
) -> Mapping[str, Any]:
    """Returns the options of a verifier, by default the chosen one.

    They are the section of its name or, where there is none, `options`. A cascade has both.
    """
    name = config.verifier.name if name is None else name
    options = config.verifier.options.to_dict()
    if name == "cascade":
        return options | config.verifier.cascade.to_dict()
    return config.verifier[name].to_dict() if name in config.verifier else options


def make(
    config: ml_collections.ConfigDict,
    name: str,
    options: Mapping[str, Any],
    tree: str | os.PathLike | None,
    tokenizer: Any,
    vocabulary: int,
    mesh: jax.sharding.Mesh,
    policy: VisionLanguageModel | None,
) -> tuple[Any, Any]:
    """The labels and a verifier: on the mesh, or a `HostVerifier`.

    Args:
      tree: file with the labels of the data, if there is one.
      vocabulary: rows of the policy's head.
      policy: whose encoder a judge may use; None reads it if the verifier's `create` asks for it.
    """
    create = plugins.find("verifiers", name, "create")
    extra = {}
    if "policy" in inspect.signature(create).parameters:
        if policy is None:
            _, policy = load_policy.load(config, load_policy.model_folder(config.model.path), mesh)
        places = (sharding.put_param(one) for one in (mesh, sharding.mesh_alone(mesh)))
        extra["policy"] = flax_judge.Policy(
            policy.decoder, tokenizer, *places, load_policy.dtypes(config)
        )
    if "make" in inspect.signature(create).parameters:

        def another(other):
            options = verifier_options(config, other)
            return make(config, other, options, tree, tokenizer, vocabulary, mesh, policy)

        extra["make"] = another
    labels, verifier = create(
        tokenizer_lib.token_bytes(tokenizer, vocabulary),
        tree,
        **extra,
        **options,
    )
    if not isinstance(verifier, HostVerifier):
        verifier = sharding.place(mesh, verifier)
    return labels, verifier


def label_shares(labels: Any, source: Sequence[Mapping[str, Any]]) -> np.ndarray:
    """Computes the share of the labelled images of a source that has each label, float64 [F].

    Args:
      labels: names on the host; `leaf_index` numbers them.
    """
    rows = (images.describe(source, i) for i in range(len(source)))
    ids = Counter(row["label_id"] for row in rows if not row.get("unlabelled"))
    share_F = np.zeros(len(labels.leaf_ids))
    for label_id, count in ids.items():
        share_F[labels.leaf_index(label_id)] = count / ids.total()
    return share_F


def with_label_shares(
    config: ml_collections.ConfigDict, verifier: Any, share_F: np.ndarray, mesh: jax.sharding.Mesh
) -> Any:
    """Returns the verifier with what it needs for credit by information.

    Raises:
      ValueError: it cannot tell base rates.
    """
    if not hasattr(verifier, "with_label_shares"):
        raise ValueError(
            f"config.reward.information.strength is {config.reward.information.strength}, which "
            "needs the share of the training images that an answer is right for, but "
            f"config.verifier.name {config.verifier.name!r} (or its judge) knows none; choose "
            "'taxonomy', or 'cascade' with a judge within the program, or set the strength to 0"
        )
    return sharding.place(mesh, verifier.with_label_shares(share_F))


def with_every_label(config: ml_collections.ConfigDict, verifier: Any) -> Any:
    """Returns the verifier with what it needs to judge images without a label by consensus.

    Raises:
      ValueError: it cannot judge for all labels.
    """
    if not hasattr(verifier, "with_every_label"):
        raise ValueError(
            f"config.reward.consensus_confidence is {config.reward.consensus_confidence}, which "
            "needs to know which answers name the same, or something below, but "
            f"config.verifier.name {config.verifier.name!r} does not tell; choose 'taxonomy', or "
            "set the confidence to 0"
        )
    return verifier.with_every_label()
