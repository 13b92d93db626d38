"""Checks of a configuration, before any compute is spent."""

import functools
from typing import Any

import jax
import ml_collections

from speciarl_jax.models import lora
from speciarl_jax.models.decoder import cache, decoder_weights, remat
from speciarl_jax.rl.losses import importance, kl
from speciarl_jax.runtime import sharding
from speciarl_jax.verifiers import parsing
from speciarl_jax.verifiers.base import HostVerifier

# Key -> the least that it may be.
_LEAST = {
    "model.lora_rank": 1,
    "model.scan_unroll": 1,
    "data.workers": 1,
    "data.max_prompt_tokens": 1,
    "rollout.num_rollouts": 2,
    "rollout.max_tokens": 1,
    "rollout.num_compactions": 0,
    "rollout.cache_bytes": 0,
    "rollout.max_images_per_chunk": 0,
    "verifier.num_chunks": 1,
    "loss.kl_warmup_steps": 0,
    "loss.kl_decay_steps": 0,
    "optimizer.warmup_steps": 0,
    "train.steps": 0,
    "train.batch_size": 1,
    "train.mini_batches": 1,
    "train.micro_batches": 1,
    "train.ppo_epochs": 1,
    "train.num_length_buckets": 1,
    "train.logprob_chunk": 1,
    "train.dynamic_sampling.max_rounds": 0,
    "train.dynamic_sampling.batch_size": 1,
    "train.max_skipped": 1,
    "train.log_every": 1,
    "train.samples_every": 0,
    "train.num_logged_images": 1,
    "train.profile_steps": 1,
    "train.stop_after": 0,
    "evaluation.every": 0,
    "evaluation.images": 0,
    "evaluation.best_of_batch_size": 1,
    "checkpoint.save_every": 1,
    "checkpoint.keep": 1,
    "checkpoint.keep_best": 0,
}


def check(config: ml_collections.ConfigDict, mesh: jax.sharding.Mesh) -> None:
    """Refuses numbers that do not fit together (ValueError)."""
    check_ranges(config)
    check_cuts(config, mesh)
    train = config.train
    if train.objective not in ("rl", "sft"):
        raise ValueError(
            f"config.train.objective is {train.objective!r}; choose 'rl', or 'sft' for "
            "supervised training"
        )
    if train.objective == "sft" and train.dynamic_sampling.max_rounds:
        raise ValueError(
            "supervised training (config.train.objective 'sft') samples nothing; set "
            "config.train.dynamic_sampling.max_rounds to 0"
        )
    updates = train.steps * train.mini_batches * train.ppo_epochs
    if 0 < config.optimizer.decay_steps < updates:
        raise ValueError(
            f"config.optimizer.decay_steps is {config.optimizer.decay_steps}, but "
            f"config.train.steps {train.steps} make {updates} updates, the last of them at a "
            f"learning rate of 0; raise it to {updates} or more, or set it to 0 for a constant rate"
        )
    if config.rollout.temperature <= 0:
        raise ValueError(
            f"config.rollout.temperature is {config.rollout.temperature}; greedy answers are all "
            "the same and teach nothing, so set it above 0"
        )
    if config.rollout.merge_lora and config.model.base_weights == "int8":
        raise ValueError(
            "config.rollout.merge_lora adds adapters to floating-point weights, but "
            "config.model.base_weights is 'int8'; switch one of them off"
        )
    decoder_weights.check_kind("config.rollout.decode_weights", config.rollout.decode_weights)
    cache.check_kind(config.rollout.kv_cache)
    remat.policy(config.train.remat)
    check_targets(config)
    check_loss(config.loss)
    check_reference(config)


def check_targets(config: ml_collections.ConfigDict) -> None:
    """Refuses adapters on the encoder beside what takes its features as fixed (ValueError)."""
    if lora.check_targets(config.model.lora_targets) == ("decoder",):
        return
    for key, off in (
        ("data.vision_cache.place", "none"),
        ("train.dynamic_sampling.max_rounds", 0),
    ):
        if (value := _value(config, key)) != off:
            raise ValueError(
                f"config.model.lora_targets {tuple(config.model.lora_targets)} trains the vision "
                f"encoder, but config.{key} {value!r} keeps features of images that it will have "
                f"changed; set that to {off!r}, or the targets to ('decoder',)"
            )


def check_cuts(config: ml_collections.ConfigDict, mesh: jax.sharding.Mesh) -> None:
    """Refuses batches that cannot be cut evenly into parts and over the mesh (ValueError)."""
    train, evaluation = config.train, config.evaluation
    cuts = train.mini_batches * train.micro_batches
    if train.batch_size % cuts:
        raise ValueError(
            f"config.train.batch_size {train.batch_size} cannot be cut into {train.mini_batches} "
            f"mini-batches of {train.micro_batches} micro-batches; make it a multiple of {cuts}"
        )
    sharding.check_batch(
        mesh, "config.train.batch_size / mini_batches / micro_batches", train.batch_size // cuts
    )
    sharding.check_batch(mesh, "config.evaluation.batch_size", evaluation.batch_size)
    key = "dynamic_sampling.batch_size" if train.dynamic_sampling.max_rounds else "batch_size"
    sampled, chunks = sampled_images(config), config.verifier.num_chunks
    sharding.check_batch(mesh, f"config.train.{key}", sampled)
    if sampled % chunks:
        raise ValueError(
            f"config.train.{key} {sampled} cannot be cut into {chunks} parts "
            "(config.verifier.num_chunks)"
        )
    sharding.check_batch(
        mesh, f"config.train.{key} / config.verifier.num_chunks", sampled // chunks
    )


def check_ranges(config: ml_collections.ConfigDict) -> None:
    """Refuses numbers outside of their range (ValueError)."""
    for key, low in _LEAST.items():
        if (value := _value(config, key)) < low:
            raise ValueError(f"config.{key} is {value}; it must be at least {low}")
    for key in ("rollout.top_p", "evaluation.best_of_top_p"):
        if not 0 < (value := _value(config, key)) <= 1:
            raise ValueError(
                f"config.{key} is {value}; it is a share of the probability, so choose a number "
                "above 0 and at most 1, which leaves all tokens"
            )
    shares = ["verifier.min_judged_fraction", "verifier.max_unjudged_fraction"]
    if config.evaluation.verifier.name:
        shares.append("evaluation.verifier.max_unjudged_fraction")
    for key in (*shares, "train.max_correctness_drop"):
        if not 0 <= (value := _value(config, key)) <= 1:
            raise ValueError(
                f"config.{key} is {value}; it is a share, so choose a number from 0 to 1"
            )


def _value(config: ml_collections.ConfigDict, key: str) -> float:
    return functools.reduce(lambda part, name: part[name], key.split("."), config)


def check_loss(loss: ml_collections.ConfigDict) -> None:
    """Refuses a loss whose parts do not fit together (ValueError)."""
    for key, choices in (
        ("token_weights", ("token_mean", "sequence_mean", "constant")),
        ("kl_estimator", kl.ESTIMATORS),
        ("kl_in", ("loss", "reward")),
        ("old_logprobs", importance.OLD_LOGPROBS),
        ("tis_level", importance.LEVELS),
        ("mismatch_mask", importance.MASKS),
    ):
        if loss[key] not in choices:
            raise ValueError(f"config.loss.{key} is {loss[key]!r}; choose one of {choices}")
    in_loss = loss.kl_coefficient and loss.kl_in == "loss"
    if loss.kl_estimator == "k1" and (in_loss or loss.kl_unlabelled):
        raise ValueError(
            "config.loss.kl_estimator 'k1' has no gradient in expectation; choose 'k2' or 'k3', or "
            "config.loss.kl_in 'reward'"
        )
    if 0 < loss.kl_decay_steps <= loss.kl_warmup_steps:
        raise ValueError(
            f"config.loss.kl_decay_steps is {loss.kl_decay_steps} and kl_warmup_steps "
            f"{loss.kl_warmup_steps}; the decay begins after the warm-up, so raise the former, or "
            "set it to 0 for no decay"
        )
    if loss.tis_cap < 0 or (loss.tis_cap and loss.old_logprobs != "recomputed"):
        raise ValueError(
            f"config.loss.tis_cap is {loss.tis_cap} and config.loss.old_logprobs "
            f"{loss.old_logprobs!r}; a cap above 0 corrects the recomputed ratio, so set "
            "old_logprobs to 'recomputed', and with 'rollout' the cap to 0, where the ratio holds "
            "the mismatch itself"
        )
    if loss.mismatch_mask != "none":
        check_mismatch(loss)
    if loss.entropy_coefficient < 0:
        raise ValueError(
            f"config.loss.entropy_coefficient is {loss.entropy_coefficient}; the loss rewards "
            "entropy, so set it above 0, or to 0 to leave it out"
        )
    if loss.rank_coefficient < 0:
        raise ValueError(
            f"config.loss.rank_coefficient is {loss.rank_coefficient}; below 0 it would teach that "
            "worse completions are the more probable ones, so set it above 0, or to 0 to leave it "
            "out"
        )


def check_reference(config: ml_collections.ConfigDict) -> None:
    """Refuses a reference policy that moves where nothing asks for one (ValueError)."""
    decay, loss, train = config.loss.reference_decay, config.loss, config.train
    if not 0 <= decay <= 1:
        raise ValueError(
            f"config.loss.reference_decay is {decay}; it is the share that the reference policy "
            "keeps in a step, so choose a number from 0 to 1, where 1 is the base for good"
        )
    if decay == 1:
        return
    why = f"config.loss.reference_decay is {decay}, but"
    if not loss.kl_coefficient and not loss.kl_unlabelled:
        raise ValueError(
            f"{why} no KL to the reference policy is asked for; set config.loss.kl_coefficient "
            "above 0, or reference_decay to 1"
        )
    for key, off in (("objective", "rl"), ("ahead", 0)):
        if train[key] != off:
            raise ValueError(
                f"{why} config.train.{key} is {train[key]!r}, where the reference policy cannot "
                f"move; set {key} to {off!r}, or reference_decay to 1"
            )


def check_unlabelled(
    config: ml_collections.ConfigDict, train_source: Any, eval_source: Any
) -> None:
    """Refuses images without labels where nothing learns from them (ValueError).

    Args:
      train_source, eval_source: images; a mixture's `unlabelled` names its parts without labels.
    """
    if parts := getattr(eval_source, "unlabelled", []):
        raise ValueError(
            f"the parts {parts} of the mixture that is evaluated have no labels; leave them out by "
            "config.evaluation.options.parts"
        )
    if train_source is None:
        return
    parts, coefficient = getattr(train_source, "unlabelled", []), config.loss.kl_unlabelled
    confidence = config.reward.consensus_confidence
    if bool(parts) != bool(coefficient or confidence) or coefficient < 0:
        raise ValueError(
            f"config.loss.kl_unlabelled is {coefficient}, config.reward.consensus_confidence "
            f"{confidence}, and of the training images the parts {parts} have no labels; give "
            "such parts (a mixture with 'labelled': False in a part) and one of these numbers "
            "above 0, or neither"
        )
    for key, off in (("train.objective", "rl"), ("train.dynamic_sampling.max_rounds", 0)):
        if parts and (value := _value(config, key)) != off:
            raise ValueError(
                f"config.{key} is {value!r}, which learns from labels alone, but the parts {parts} "
                f"of the training images have none; set it to {off!r}, or leave these parts out"
            )


def check_ahead(config: ml_collections.ConfigDict, verifier: Any) -> None:
    """Refuses to sample ahead where nobody waits for a verifier on the host (ValueError)."""
    train = config.train
    if train.ahead not in (0, 1):
        raise ValueError(
            f"config.train.ahead is {train.ahead}; at most 1 batch is sampled ahead, so choose 0 "
            "or 1"
        )
    if not train.ahead:
        return
    for key, off in (("objective", "rl"), ("dynamic_sampling.max_rounds", 0)):
        if (value := _value(train, key)) != off:
            raise ValueError(
                f"config.train.ahead is 1, but config.train.{key} is {value!r}; set ahead to 0, "
                f"or {key} to {off!r}"
            )
    if not isinstance(verifier, HostVerifier):
        raise ValueError(
            f"config.train.ahead is 1, but config.verifier.name {config.verifier.name!r} judges "
            "within the program, and nothing waits for it; set it to 0, or choose a judge on the "
            "host ('http_judge')"
        )


def check_mismatch(loss: ml_collections.ConfigDict) -> None:
    """Refuses a mask of what sampler and trainer disagree about that keeps nothing (ValueError)."""
    if loss.old_logprobs != "recomputed":
        raise ValueError(
            f"config.loss.mismatch_mask {loss.mismatch_mask!r} compares the sampler with "
            f"recomputed log-probabilities, but config.loss.old_logprobs is "
            f"{loss.old_logprobs!r}; set that to 'recomputed', or the mask to 'none'"
        )
    if not 0 <= loss.mismatch_low <= 1 <= loss.mismatch_high:
        raise ValueError(
            f"config.loss.mismatch_low is {loss.mismatch_low} and mismatch_high "
            f"{loss.mismatch_high}; where sampler and trainer agree the ratio is 1, so choose a "
            "lower bound from 0 to 1 and an upper one of 1 or more"
        )


def sampled_images(config: ml_collections.ConfigDict) -> int:
    """Images that are sampled at once: a step's batch, or a round of dynamic sampling."""
    dynamic = config.train.dynamic_sampling
    return dynamic.batch_size if dynamic.max_rounds else config.train.batch_size


def check_opened_thought(config: ml_collections.ConfigDict, prompt: str) -> None:
    """Refuses to ask completions for a thought that the prompt has opened already.

    The chat template of a model that always thinks ends a prompt with `<think>`, and a completion
    then holds the closing tag alone.

    Args:
      prompt: text of a prompt, as the chat template writes it.

    Raises:
      ValueError: the verifier wants both tags, or supervised training would write a second one.
    """
    opened = parsing.THINK_OPEN
    if not prompt.rstrip().endswith(opened):
        return
    why = f"the chat template of the policy ends a prompt with {opened}, so completions lack it"
    verifier = config.verifier
    names = [verifier.name, *([verifier.cascade.judge] if verifier.name == "cascade" else [])]
    for name in names:
        section = name if name in verifier and "tags" in verifier[name] else "options"
        if "tags" in verifier[section] and verifier[section].tags == "think":
            raise ValueError(
                f"{why}, and with config.verifier.{section}.tags 'think' none could be parsed; set "
                "it to 'answer'"
            )
    if config.train.objective == "sft" and config.train.target.lstrip().startswith(opened):
        raise ValueError(
            f"{why}, but config.train.target begins with it; take the tag off "
            f"({config.train.target.lstrip().removeprefix(opened)!r})"
        )
