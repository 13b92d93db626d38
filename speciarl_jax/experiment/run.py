"""From a configuration to the parts of a run, each checked before any compute is spent."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from absl import logging
from flax import nnx

from speciarl_jax.data import image_processor, images, label_tree, pipeline, prompt_builder
from speciarl_jax.data import tokenizer as tokenizer_lib
from speciarl_jax.data.sources import open_source
from speciarl_jax.experiment import algorithm as algorithm_lib
from speciarl_jax.experiment import make_verifier
from speciarl_jax.experiment.validate_config import (
    check,
    check_ahead,
    check_opened_thought,
    check_unlabelled,
    sampled_images,
)
from speciarl_jax.models import load_policy, stored_weights, vision_feature_cache
from speciarl_jax.models.checkpoints import hf_checkpoint
from speciarl_jax.models.policy_config import PolicyConfig
from speciarl_jax.models.prompt_batch import UNLABELLED, PromptBatch
from speciarl_jax.rollout import kv_cache_budget, sample_and_verify
from speciarl_jax.runtime import activation_sharding, sharding
from speciarl_jax.runtime import fingerprint as fingerprint_lib


@dataclasses.dataclass(frozen=True)
class Run:
    """Holds what training and evaluation share."""

    config: ml_collections.ConfigDict
    mesh: jax.sharding.Mesh
    model_config: PolicyConfig
    graphdef: nnx.GraphDef  # joins adapters and base
    lora: nnx.State  # fresh adapters
    base: nnx.State  # frozen weights
    tokenizer: Any
    builder: prompt_builder.PromptBuilder  # makes batches of rows
    banned_V: jax.Array  # bool, tokens that are never sampled
    end_ids: tuple[int, ...]  # tokens that end a completion; the chat template's own is the first
    vision_cache: vision_feature_cache.VisionCache | None = None  # of features, or None
    # Images of training, as `config.seed` orders them; None where nothing trains.
    train_source: Any = None
    eval_source: Any = None  # images of evaluation
    labels: Any = None  # names of the labels on the host; its `leaf_index` numbers them
    verifier: Any = None  # a pytree, or a `HostVerifier` that no program takes
    label_entropy: float = 1.0  # of the labels of training, nats; only credit by information asks

    @functools.cached_property
    def algorithm(self) -> algorithm_lib.Algorithm:
        """Reward, advantages, loss and how a step updates, as the configuration chooses them."""
        return algorithm_lib.from_config(self.config, self.label_entropy)

    def train_source_of(self, seed: int) -> Any:
        """Returns the training images as another seed orders or augments them."""
        if hasattr(self.train_source, "with_seed"):
            return self.train_source.with_seed(seed)
        return open_source(self.config, seed)

    def build(self, rows: Sequence[Mapping[str, Any]], batch_size: int) -> PromptBatch:
        """Builds a numpy batch of this process's rows; skipped rows and padding have weight 0."""

        def index(row):
            if row.get("unlabelled"):
                return UNLABELLED
            return self.labels.leaf_index(row["label_id"])

        return self.builder([{**row, "label_index": index(row)} for row in rows], batch_size)

    def place(self, batch: PromptBatch) -> PromptBatch:
        """Puts this process's rows of a batch on the devices.

        Where there is a cache of features, the batch holds features instead of patches. All
        processes must call it together, from their main threads.
        """
        batch = self.builder.pad_to_largest_host(batch)
        if self.vision_cache is not None:
            return self.vision_cache.place(batch)
        return sharding.put_batch(self.mesh, batch)

    def place_metrics(self) -> dict[str, float]:
        """Returns the metrics of `place` since the last call."""
        return self.vision_cache.metrics() if self.vision_cache is not None else {}

    def chunks(self, num_rollouts: int, max_tokens: int, *, kv_cache: str = "dtype"):
        """`kv_cache_budget.chunks` but for (B, P).

        Args:
          kv_cache: one of `cache.KINDS`.

        Raises:
          ValueError: the caches of one image with the longest prompt are too large.
        """
        config, text = self.config, self.model_config.text
        devices = sharding.batch_parts(self.mesh)
        counted = functools.partial(
            kv_cache_budget.chunks,
            token=kv_cache_budget.token_bytes(text, load_policy.dtypes(config)["dtype"], kv_cache),
            answers=num_rollouts,
            tokens=max_tokens,
            num_compactions=config.rollout.num_compactions,
            devices=devices,
            cache_bytes=config.rollout.cache_bytes,
            max_images_per_chunk=config.rollout.max_images_per_chunk,
        )
        counted(devices, config.data.max_prompt_tokens)
        return counted

    def sampler(self, num_rollouts: int, max_tokens: int, *, training: bool = False):
        """`sample_and_verify.sample` but for (lora, base, batch, key, temperature, top_p).

        Args:
          training: decode as `config.rollout.decode_weights` and `kv_cache` say. Otherwise nothing
            is rounded: the policy itself is asked.

        Raises:
          ValueError: as for `chunks`.
        """
        config = self.config.rollout
        kv_cache = config.kv_cache if training else "dtype"
        return functools.partial(
            activation_sharding.on_mesh(self.mesh, sample_and_verify.sample),
            graphdef=self.graphdef,
            chunks=self.chunks(num_rollouts, max_tokens, kv_cache=kv_cache),
            num_rollouts=num_rollouts,
            max_tokens=max_tokens,
            end_ids=self.end_ids,
            banned_V=self.banned_V,
            merge_lora=config.merge_lora,
            num_compactions=config.num_compactions,
            decode_weights=config.decode_weights if training else "param_dtype",
            kv_cache=kv_cache,
        )

    def answers(self, tokens_BNT: np.ndarray, mask_BNT: np.ndarray) -> list[list[str]]:
        """The text of responses, without the special token that ends them."""
        silent = list(set(self.end_ids) & set(self.tokenizer.all_special_ids))
        return [
            [
                self.tokenizer.decode(
                    tokens[mask & ~np.isin(tokens, silent)], skip_special_tokens=False
                )
                for tokens, mask in zip(*group, strict=True)
            ]
            for group in zip(tokens_BNT, mask_BNT, strict=True)
        ]


def open_sources(config: ml_collections.ConfigDict) -> tuple[Any, Any]:
    """The images of training and of evaluation, checked as far as that reads only one of them.

    Raises:
      ValueError: as for `open_source`, there are fewer than a batch, or rows lack a field.
    """
    training = open_source(config, config.seed)
    pipeline.check_length(len(training), sampled_images(config))
    evaluation = open_source(config, config.evaluation.seed, **config.evaluation.options)
    if config.data.on_decode_error == "raise":
        for source in (training, evaluation):
            images.check_files(source)
    images.check_first_row(training, config.data.name)
    # A run of a study answers about `evaluation.sets` alone.
    if config.evaluation.in_training == "own" or config.evaluation.every:
        _warn_of_parts(training, evaluation)
    return training, evaluation


def _warn_of_parts(training: Any, evaluation: Any) -> None:
    """Logs labels that no evaluation image has, and images that both parts have."""
    sources = (training, evaluation)
    if not all(hasattr(source, "entries") for source in sources):
        return
    learned, asked = ({entry.label: None for entry in source.entries} for source in sources)
    if lost := [label for label in learned if label not in asked]:
        more = f" and {len(lost) - 20} more" if len(lost) > 20 else ""
        logging.warning(
            "%d of %d labels of training have no evaluation image: %s%s",
            *(len(lost), len(learned), ", ".join(map(repr, lost[:20])), more),
        )
    keys, others = ({(e.key, str(e.place)) for e in source.entries} for source in sources)
    if shared := keys & others:
        logging.warning(
            "%d of %d evaluation images are images of training, too", len(shared), len(others)
        )


def prepare(config: ml_collections.ConfigDict, devices: Any = None) -> Run:
    """Checks the configuration, loads the policy into its shards, and builds the verifier.

    Args:
      devices: of the mesh; all of them when None.

    Raises:
      ValueError: something does not fit; says what, and how to mend it.
      TypeError: an option that a part does not have.
    """
    load_policy.model_folder(config.model.path)  # before the images are listed
    mesh = sharding.make_mesh(**config.mesh, devices=devices)
    check(config, mesh)
    algorithm_lib.check(config)
    sources = open_sources(config)
    return with_data(policy_run(config, mesh), *sources)


def policy_run(config: ml_collections.ConfigDict, mesh: jax.sharding.Mesh) -> Run:
    """The policy with what it reads, without labels and verifier.

    Weights come last: what is wrong with the smaller parts is said before any is read.

    Args:
      config: the whole configuration; its policy, prompt and rollout count.

    Raises:
      ValueError: something does not fit; says what, and how to mend it.
    """
    sharding.barrier(mesh)
    folder = load_policy.model_folder(config.model.path)
    model_config = hf_checkpoint.read_config(folder)
    tokenizer = tokenizer_lib.load(folder)
    processor = image_processor.load(folder, config.data.max_pixels)
    builder = make_prompt_builder(config, model_config, tokenizer, processor, config.data.prompt)
    vocabulary = model_config.text.vocab_size
    end_ids = tokenizer_lib.end_ids(tokenizer, model_config.eos_token_id, vocabulary)
    banned_V = tokenizer_lib.banned_tokens(tokenizer, vocabulary, end_ids)
    run = Run(
        config=config,
        mesh=mesh,
        model_config=model_config,
        graphdef=None,
        lora=None,
        base=None,
        tokenizer=tokenizer,
        builder=builder,
        banned_V=jnp.asarray(banned_V),
        end_ids=end_ids,
    )
    rollout = config.rollout
    run.chunks(rollout.num_rollouts, rollout.max_tokens, kv_cache=rollout.kv_cache)
    _, policy = load_policy.load(config, folder, mesh)
    graphdef, lora, base = nnx.split(policy, nnx.LoRAParam, ...)
    cache = vision_feature_cache.make(config.data.vision_cache, policy.visual, mesh)
    logging.info("%s on mesh %s", folder.name, dict(mesh.shape))
    return dataclasses.replace(run, graphdef=graphdef, lora=lora, base=base, vision_cache=cache)


def make_prompt_builder(
    config: ml_collections.ConfigDict,
    model_config: PolicyConfig,
    tokenizer: Any,
    image_processor: Any,
    prompt: str,
) -> prompt_builder.PromptBuilder:
    """What makes batches with this prompt, the name of one or a file (`config.data.prompt`).

    Raises:
      ValueError: there is no such prompt, or these parts do not fit together.
    """
    return prompt_builder.PromptBuilder(
        model_config,
        tokenizer,
        image_processor,
        prompt_builder.read_prompt(prompt),
        system=config.data.system,
        max_prompt_tokens=config.data.max_prompt_tokens,
        bucket_growth=config.data.bucket_growth,
    )


def with_data(run: Run, train_source: Any, eval_source: Any) -> Run:
    """Returns the run with these images, their labels, and the verifier of its configuration.

    Args:
      run: of `policy_run`.
      train_source: images of training, whose labels the verifier must know; None for none.
      eval_source: images of evaluation.

    Raises:
      ValueError: an option of the verifier, or a label tree, does not fit.
    """
    config = run.config
    check_opened_thought(config, run.builder.text)
    check_unlabelled(config, train_source, eval_source)
    sources = [source for source in (train_source, eval_source) if source is not None]
    labels, verifier = make_verifier.make(
        config,
        config.verifier.name,
        make_verifier.verifier_options(config),
        label_tree.path_of(sources),
        run.tokenizer,
        run.model_config.text.vocab_size,
        run.mesh,
        nnx.merge(run.graphdef, run.lora, run.base),
    )
    if train_source is not None:
        check_ahead(config, verifier)
    run = dataclasses.replace(
        run, train_source=train_source, eval_source=eval_source, labels=labels, verifier=verifier
    )
    if config.reward.information.strength and train_source is not None:
        share_F = make_verifier.label_shares(labels, train_source)
        verifier = make_verifier.with_label_shares(config, verifier, share_F, run.mesh)
        entropy = -float(np.sum(share_F * np.log(np.where(share_F > 0, share_F, 1.0))))
        run = dataclasses.replace(run, verifier=verifier, label_entropy=entropy)
    if config.reward.consensus_confidence and train_source is not None:
        verifier = make_verifier.with_every_label(config, run.verifier)
        run = dataclasses.replace(run, verifier=verifier)
    return run


def evaluation_config(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """Returns the configuration with the verifier that judges evaluations as its only one.

    That is `config.evaluation.verifier`, or where it has no name `config.verifier`, as before.
    """
    if not config.evaluation.verifier.name:
        return config
    changed = config.copy_and_resolve_references()
    with changed.unlocked():
        changed.verifier = config.evaluation.verifier.copy_and_resolve_references()
        changed.evaluation.verifier.name = ""
        # Evaluation rewards nothing.
        changed.reward.information.strength = changed.reward.consensus_confidence = 0.0
    return changed


def evaluation_run(run: Run) -> Run:
    """Returns the run with the verifier that judges evaluations (`evaluation_config`).

    Raises:
      ValueError: as for `with_data`.
    """
    config = evaluation_config(run.config)
    if config is run.config:
        return run
    judged = dataclasses.replace(run, config=config)
    return with_data(judged, run.train_source, run.eval_source)


def fingerprint(run: Run) -> dict[str, Any]:
    """Returns what a resumed run must agree with: configuration, training images, base weights.

    Only sources that have a `fingerprint` say which images they hold. The tokens that end a
    completion are among it where there are several.
    """
    folder = load_policy.model_folder(run.config.model.path)
    known = {fingerprint_lib.BASE_WEIGHTS: stored_weights.fingerprint(folder)}
    if (images := getattr(run.train_source, "fingerprint", None)) is not None:
        known["data.images"] = images
    if len(run.end_ids) > 1:
        known["model.end_ids"] = list(run.end_ids)
    if contents := getattr(run.train_source, "content_fingerprint", None):
        known[fingerprint_lib.CONTENTS] = contents
    return fingerprint_lib.of_config(run.config) | known
