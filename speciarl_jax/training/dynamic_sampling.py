"""Dynamic sampling: a step samples on until every group of its batch has something to teach.

DAPO (arXiv 2503.14476, section 3.2, equation 11). A group whose rollouts all earn the same has no
advantage; it only dilutes the batch. What counts is the reward of the verdicts: lengths and
divergence from the reference give no signal of their own.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging

from speciarl_jax.experiment.run import Run
from speciarl_jax.rl import advantages
from speciarl_jax.rollout.types import Groups
from speciarl_jax.runtime import sharding
from speciarl_jax.training import rl_step
from speciarl_jax.training.state import TrainState
from speciarl_jax.verifiers.category import Category


def is_on(run: Run) -> bool:
    """Tells whether steps of this run sample dynamically."""
    return run.config.train.dynamic_sampling.max_rounds > 0


def add_to_pool(pool: Groups | None, fresh: Groups, signal_B: jax.Array, *, size: int) -> Groups:
    """Puts those groups of `fresh` that have signal behind the pool, and cuts it to `size`.

    Args:
      pool: groups so far, padded as `fresh` is (`pad_alike`), or None.
      signal_B: bool, which of `fresh` to keep.
      size: groups of the result. Where they are too few, others fill it up with weight 0.
    """
    keep_B = signal_B & (fresh.prompt.weight_B > 0)
    candidates = fresh
    if pool is not None:
        keep_B = jnp.concatenate([pool.prompt.weight_B > 0, keep_B])
        candidates = jax.tree.map(lambda *x: jnp.concatenate(x), pool, fresh)
    order_B = jnp.resize(jnp.argsort(~keep_B, stable=True), size)
    kept_B = jnp.arange(size) < jnp.sum(keep_B)
    taken = jax.tree.map(lambda x: x[order_B], candidates)
    return taken.replace(
        prompt=taken.prompt.replace(weight_B=kept_B.astype(jnp.float32)),
        valid_BN=taken.valid_BN & kept_B[:, None],
    )


def pad_alike(one: Groups, other: Groups, pad: Callable[..., Groups]) -> tuple[Groups, Groups]:
    """Pads both to the longer prompts and features of the two.

    Args:
      pad: (groups, prompt tokens, image tokens) -> groups.
    """
    sizes = [(x.prompt.tokens_BP.shape[1], x.features_BMD.shape[1]) for x in (one, other)]
    longest = tuple(map(max, *sizes))
    one, other = (
        groups if now == longest else pad(groups, *longest)
        for groups, now in zip((one, other), sizes, strict=True)
    )
    return one, other


def pad(groups: Groups, prompt_tokens: int, image_tokens: int, *, pad_id: int) -> Groups:
    """Pads prompts and features; no number depends on padding.

    Args:
      prompt_tokens: P of the result.
      image_tokens: M of the result.
      pad_id: token that pads prompts on the left; no image placeholder.
    """
    left = prompt_tokens - groups.prompt.tokens_BP.shape[1]
    behind = image_tokens - groups.features_BMD.shape[1]
    return groups.replace(
        prompt=groups.prompt.pad_left(left, pad_id, jnp.pad),
        features_BMD=jnp.pad(groups.features_BMD, [(0, 0), (0, behind), (0, 0)]),
    )


def describe(
    groups: Groups, rewarded: rl_step.Rewarded, signal_B: jax.Array
) -> dict[str, jax.Array]:
    """Describes all sampled rollouts; those that the update gets are a selection.

    The mean reward is over the rollouts of groups with enough verdicts.
    """
    valid_BN, taken_BN = groups.valid_BN, rewarded.taken_BN
    count = jnp.maximum(jnp.sum(valid_BN), 1)
    shares = {
        f"sampled/{c.name.lower()}": jnp.sum(valid_BN & (groups.category_BN == c)) / count
        for c in Category
    }
    return shares | {
        "sampled/unjudged": rl_step.unjudged(valid_BN, groups.prompt.labelled_B),
        "sampled/reward": jnp.sum(rewarded.reward_BN * taken_BN)
        / jnp.maximum(jnp.sum(taken_BN), 1),
        "sampled/reward_not_finite": rewarded.share_not_finite(valid_BN),
        "sampled/groups_with_signal": jnp.mean(signal_B.astype(jnp.float32)),
    }


def train_step(
    run: Run,
    judge: Callable[..., tuple[Groups, Any]],
    summarise: Callable[[Sequence[Any]], dict[str, Any]],
    update_program: Callable[..., tuple[TrainState, dict[str, Any]]],
) -> Callable[..., tuple[TrainState, dict[str, Any]]]:
    """Makes (state, base, verifier, next_batch, number) -> (state, metrics).

    `next_batch()` gives `config.train.dynamic_sampling.batch_size` images. A step asks for more
    until `config.train.batch_size` groups have signal, `max_rounds` times at most. Groups beyond
    that are dropped. Where groups are missing the update is smaller, and a warning says so.

    Args:
      judge: (state, base, verifier, batch, number) -> groups, and what `summarise` takes.
      summarise: verdicts of all rounds -> metrics.
      update_program: (state, base, groups) -> (state, metrics).
    """
    size, options = run.config.train.batch_size, run.config.train.dynamic_sampling
    batch_sharding, replicated = sharding.batch_sharding(run.mesh), sharding.replicated(run.mesh)

    def keep(pool, fresh, learned):
        # A group that lacks verdicts would leave the update, so it must not take a place in it.
        rewarded = rl_step.reward_groups(fresh, learned, run.algorithm)
        signal_B = advantages.has_signal(rewarded.reward_BN, rewarded.taken_BN)
        pool = add_to_pool(pool, fresh, signal_B, size=size)
        summary = describe(fresh, rewarded, signal_B)
        return pool, (jnp.sum(pool.prompt.weight_B), summary)

    # What depends on two sizes only pads; the rest is compiled once for each size of a pool.
    keep_program = jax.jit(keep, out_shardings=(batch_sharding, replicated))
    pad_groups = functools.partial(pad, pad_id=run.end_ids[0])
    pad_program = jax.jit(pad_groups, static_argnums=(1, 2), out_shardings=batch_sharding)

    def program(state, base, verifier, next_batch, number):
        pool, filled, summaries, verdicts = None, 0, [], []
        while filled < size and len(summaries) < options.max_rounds:
            batch = next_batch()
            # An image that comes twice in a step is sampled anew.
            draw = np.uint32(int(number) * options.max_rounds + len(summaries))
            fresh, found = judge(state, base, verifier, batch, draw)
            verdicts.append(found)
            fresh = fresh.replace(prompt=fresh.prompt.without_images())
            if pool is not None:
                pool, fresh = pad_alike(pool, fresh, pad_program)
            pool, (count, summary) = keep_program(pool, fresh, state.step)
            filled = int(count)
            summaries.append(summary)
        if filled < size:
            logging.warning(
                "step %d: %d rounds of %d images gave %d of %d groups whose rewards differ; the "
                "update is that much smaller (config.train.dynamic_sampling)",
                *(int(number), len(summaries), options.batch_size, filled, size),
            )
        state, metrics = update_program(state, base, pool)
        counts = {
            "dynamic_sampling/rounds": len(summaries),
            "dynamic_sampling/filled": filled / size,
        }
        sampled = {name: np.mean([float(one[name]) for one in summaries]) for name in summaries[0]}
        return state, metrics | sampled | counts | summarise(verdicts)

    return program
