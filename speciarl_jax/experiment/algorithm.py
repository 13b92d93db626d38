"""What a configuration chooses of the method: reward, advantages, loss, and how a step updates."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections

from speciarl_jax.experiment import extension_points
from speciarl_jax.rl import advantages, optimizer, verdict_noise
from speciarl_jax.rl.losses import importance, kl, likelihood, token_weights
from speciarl_jax.rl.rewards import brier, information, overlong
from speciarl_jax.runtime import plugins
from speciarl_jax.verifiers import group_consensus

Function = Callable[..., Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Algorithm:
    """Functions and numbers of a group-relative policy update; no ConfigDict behind it."""

    reward: Function  # (category_BN, valid_BN) -> reward_BN (`rl.rewards`)
    # (category_BN, image_id_B, step) -> category_BN that are rewarded instead, for the study of
    # verifiers that err (`rl.verdict_noise`); None without noise.
    noise: Function | None = None
    # base_rate_BN -> factor of positive rewards (`rl.rewards.information`); None for full credit.
    information: Function | None = None
    # (category_BNF, answer_BN) -> verdicts on images without a label (`verifiers.group_consensus`);
    # None for none.
    consensus: Function | None = None
    # length_BN -> what long completions lose of their reward; None without penalty.
    overlong: Function | None = None
    # (logp_BNT, mask_BNT, reward_BN) -> what completions lose whose probability is not what they
    # earn (`rl.rewards.brier`); None without.
    brier: Function | None = None
    # Share of a group that must have a verdict (`rl_step.judged_groups`).
    min_judged_fraction: float
    advantages: Function  # (reward_BN, valid_BN) -> advantage_BN (`rl.advantages`)
    # (logp_BNT, old_logp_BNT, advantage_BN, mask_BNT) -> (loss_BNT, metrics) (`rl.losses`).
    policy_loss: Function
    # mask_BNT -> weight_BNT that aggregates the loss (`rl.losses.token_weights`).
    token_weights: Function
    # (logp, reference_logp) -> estimate of each token (`rl.losses.kl`).
    kl: Callable[[jax.Array, jax.Array], jax.Array]
    kl_coefficient: float  # of the KL to the reference policy; 0 leaves it out
    # step -> factor on that coefficient (`kl.schedule`); None leaves it constant.
    kl_schedule: Callable[[jax.Array], jax.Array] | None
    kl_in: str  # "loss", or "reward"
    kl_unlabelled: float  # coefficient of the KL about images without a label; 0 leaves it out
    # The share of the reference policy's adapters that a step keeps; the policy gives the rest. At
    # 1 the reference is the base.
    reference_decay: float
    old_logprobs: str  # what the ratio is taken against, one of `importance.OLD_LOGPROBS`
    tis_cap: float  # with "recomputed", bound of the truncated importance weight; 0 leaves it out
    tis_level: str  # what that weight is computed of, one of `importance.LEVELS`
    # (trainer_logp_BNT, sampler_logp_BNT, mask_BNT) -> bool, the tokens that stay in the policy
    # loss (`importance.kept`); None keeps them all.
    kept: Function | None
    entropy_coefficient: float  # of the entropy that the loss rewards; 0 leaves it out
    rank_coefficient: float  # of the loss of pairs (`losses.rank`); 0 leaves it out
    temperature: float  # the rollouts are sampled and scored at
    mini_batches: int  # optimizer updates an epoch over the step's rollouts
    ppo_epochs: int  # how often a step goes through its rollouts
    micro_batches: int  # parts of a mini-batch, for memory
    num_length_buckets: int  # lengths that a micro-batch is compiled for (`rollout.length_buckets`)
    logprob_chunk: int  # token positions a call of the language-model head
    remat: str  # what the backward pass computes again, a key of `remat.KINDS`
    # Images whose rollouts a step hands back for people to look at; 0 for none.
    num_logged_images: int

    @property
    def kl_in_loss(self) -> float:
        """The coefficient of the KL in the loss; 0 where it is in the reward or nowhere."""
        return self.kl_coefficient if self.kl_in == "loss" else 0.0

    @property
    def kl_in_reward(self) -> float:
        """The coefficient of the KL in the reward."""
        return self.kl_coefficient if self.kl_in == "reward" else 0.0

    @property
    def needs_reference(self) -> bool:
        """Whether an update compares the policy with the reference policy, token by token."""
        return bool(self.kl_in_loss or self.kl_unlabelled)

    def kl_weight(self, step: jax.Array) -> jax.Array | float:
        """Returns the coefficient of the KL after `step` finished updates, wherever the KL is."""
        if self.kl_schedule is None:
            return self.kl_coefficient
        return self.kl_coefficient * self.kl_schedule(step)

    @property
    def rescores(self) -> bool:
        """Whether old log-probabilities take a forward pass of their own.

        The only update of a step has them at hand: the policy is its own old policy.
        """
        return self.old_logprobs == "recomputed" and self.mini_batches * self.ppo_epochs > 1

    def supervised(self) -> "Algorithm":
        """Returns the same update with the cross-entropy of given completions as its loss."""
        return dataclasses.replace(
            self,
            policy_loss=likelihood.policy_loss,
            token_weights=token_weights.token_mean,
            temperature=1.0,
            old_logprobs="recomputed",
            tis_cap=0.0,
            kept=None,
            entropy_coefficient=0.0,
            rank_coefficient=0.0,
        )


def from_config(config: ml_collections.ConfigDict, label_entropy: float = 1.0) -> Algorithm:
    """Finds the functions that a configuration names and binds their options.

    Args:
      label_entropy: of the labels of training, nats (`rl.rewards.information`).

    Raises:
      ValueError: an unknown name.
    """
    loss, train = config.loss, config.train
    reward = functools.partial(
        plugins.find("rl.rewards", config.reward.name, "reward"), **config.reward.options
    )
    policy_loss = functools.partial(
        plugins.find("rl.losses", loss.name, "policy_loss"), **loss.options
    )
    weights = getattr(token_weights, loss.token_weights)
    penalty = functools.partial(
        overlong.penalty,
        max_tokens=config.rollout.max_tokens,
        buffer=config.reward.overlong_buffer,
        weight=config.reward.overlong_penalty,
    )
    credit = functools.partial(
        information.credit, entropy=label_entropy, **config.reward.information
    )
    brier_penalty = functools.partial(brier.penalty, weight=config.reward.brier_weight)
    consensus = functools.partial(
        group_consensus.verdicts, confidence=config.reward.consensus_confidence
    )
    schedule = functools.partial(
        kl.schedule, warmup_steps=loss.kl_warmup_steps, decay_steps=loss.kl_decay_steps
    )
    kept = functools.partial(
        importance.kept, of=loss.mismatch_mask, low=loss.mismatch_low, high=loss.mismatch_high
    )
    noise = functools.partial(verdict_noise.noisy, **config.label_noise)
    return Algorithm(
        reward=extension_points.reward(reward, config.reward.name),
        noise=noise if config.label_noise.rate else None,
        information=credit if config.reward.information.strength else None,
        consensus=consensus if config.reward.consensus_confidence else None,
        overlong=penalty if config.reward.overlong_penalty else None,
        brier=brier_penalty if config.reward.brier_weight else None,
        min_judged_fraction=config.verifier.min_judged_fraction,
        advantages=functools.partial(advantages.group_advantages, **config.advantage),
        policy_loss=extension_points.policy_loss(policy_loss, loss.name),
        token_weights=functools.partial(weights, **loss.token_weights_options),
        kl=getattr(kl, loss.kl_estimator),
        kl_coefficient=loss.kl_coefficient,
        kl_schedule=schedule if loss.kl_warmup_steps or loss.kl_decay_steps else None,
        kl_in=loss.kl_in,
        kl_unlabelled=loss.kl_unlabelled,
        reference_decay=loss.reference_decay,
        old_logprobs=loss.old_logprobs,
        tis_cap=loss.tis_cap,
        tis_level=loss.tis_level,
        kept=kept if loss.mismatch_mask != "none" else None,
        entropy_coefficient=loss.entropy_coefficient,
        rank_coefficient=loss.rank_coefficient,
        temperature=config.rollout.temperature,
        mini_batches=train.mini_batches,
        ppo_epochs=train.ppo_epochs,
        micro_batches=train.micro_batches,
        num_length_buckets=train.num_length_buckets,
        logprob_chunk=train.logprob_chunk,
        remat=train.remat,
        num_logged_images=train.num_logged_images if train.samples_every else 0,
    )


def check(config: ml_collections.ConfigDict) -> None:
    """Calls the parts of the method with made-up rollouts, before compute is spent on real ones.

    Raises:
      ValueError: an unknown name, or a value that a part refuses.
      TypeError: an option that a part does not have, or a part returns another shape or dtype
        (`extension_points`).
    """
    jax.eval_shape(functools.partial(_call, config))
    optimizer.make(**config.optimizer)


def _call(config: ml_collections.ConfigDict) -> None:
    algorithm = from_config(config)
    # All sizes differ, so that no wrong shape looks like a right one.
    category_BN = jnp.array([[0, 4, 1], [2, 3, -1]], jnp.int32)
    mask_BNT = jnp.ones((2, 3, 4), bool)
    valid_BN = mask_BNT[..., 0]
    reward_BN = algorithm.reward(category_BN, valid_BN)
    algorithm.token_weights(mask_BNT)
    zeros_BNT = jnp.zeros(mask_BNT.shape)
    algorithm.policy_loss(zeros_BNT, zeros_BNT, algorithm.advantages(reward_BN, valid_BN), mask_BNT)
    information.credit(reward_BN, **config.reward.information)
    if algorithm.consensus is not None:
        algorithm.consensus(category_BN[..., None], category_BN.astype(jnp.uint32))
    if algorithm.overlong is not None:
        algorithm.overlong(jnp.ones(valid_BN.shape))
    if algorithm.brier is not None:
        algorithm.brier(zeros_BNT, mask_BNT, reward_BN)
    verdict_noise.noisy(category_BN, jnp.zeros(2, int), 0, **config.label_noise)
