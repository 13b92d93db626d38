"""Dynamic sampling: a step samples on until every group of its batch has something to teach.

DAPO (arXiv 2503.14476, section 3.2, equation 11). A group whose answers all earn the same has no
advantage; it only dilutes the batch. What counts is the reward of the verdicts: lengths and
divergence from the reference give no signal of their own.
"""

from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from absl import logging

from speciarl_jax import advantages, assemble, sharding
from speciarl_jax.types import PromptBatch, Rollout
from speciarl_jax.update import TrainState
from speciarl_jax.verify.category import Category


@flax.struct.dataclass
class Groups:
    """Answers with their verdicts. A group that is not to be learned from has `weight_B` 0.

    Attributes:
      prompt: without patches and layout, since the tower has run.
      features_BMD: of the pictures.
      rollout: the answers.
      category_BN: their categories.
      valid_BN: whether a verdict exists.
    """

    prompt: PromptBatch
    features_BMD: jax.Array
    rollout: Rollout
    category_BN: jax.Array
    valid_BN: jax.Array


def gather(
    pool: Groups | None, fresh: Groups, signal_B: jax.Array, *, size: int, pad_id: int
) -> Groups:
    """The pool and, behind it, those groups of `fresh` that have signal, cut to `size`; in order.

    Args:
      pool: what was gathered so far, or None.
      fresh: groups that were just sampled.
      signal_B: bool, which of `fresh` to keep.
      size: groups of the result. Where they are too few, others fill it up with weight 0.
      pad_id: token that pads prompts on the left; no image placeholder.
    """
    keep_B = signal_B & (fresh.prompt.weight_B > 0)
    candidates = fresh
    if pool is not None:
        keep_B = jnp.concatenate([pool.prompt.weight_B > 0, keep_B])
        pair = _pad_to(pool, fresh, pad_id), _pad_to(fresh, pool, pad_id)
        candidates = jax.tree.map(lambda *x: jnp.concatenate(x), *pair)
    order_B = jnp.resize(jnp.argsort(~keep_B, stable=True), size)
    kept_B = jnp.arange(size) < jnp.sum(keep_B)
    taken = jax.tree.map(lambda x: x[order_B], candidates)
    return taken.replace(
        prompt=taken.prompt.replace(weight_B=kept_B.astype(jnp.float32)),
        valid_BN=taken.valid_BN & kept_B[:, None],
    )


def _pad_to(groups: Groups, other: Groups, pad_id: int) -> Groups:
    """Prompts and features at least as long as those of `other`; no number depends on padding."""
    prompt = groups.prompt
    left = max(0, other.prompt.tokens_BP.shape[1] - prompt.tokens_BP.shape[1])
    behind = max(0, other.features_BMD.shape[1] - groups.features_BMD.shape[1])

    def pad_left(x, value):
        return jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(left, 0)], constant_values=value)

    return groups.replace(
        prompt=prompt.replace(
            tokens_BP=pad_left(prompt.tokens_BP, pad_id),
            mask_BP=pad_left(prompt.mask_BP, False),
            positions_B3P=pad_left(prompt.positions_B3P, 1),
        ),
        features_BMD=jnp.pad(groups.features_BMD, [(0, 0), (0, behind), (0, 0)]),
    )


def describe(
    category_BN: jax.Array, valid_BN: jax.Array, reward_BN: jax.Array, signal_B: jax.Array
) -> dict[str, jax.Array]:
    """What all sampled answers were like: those that are learned from are a choice."""
    judged = jnp.maximum(jnp.sum(valid_BN), 1)
    shares = {
        f"sampled/{c.name.lower()}": jnp.sum(valid_BN & (category_BN == c)) / judged
        for c in Category
    }
    return shares | {
        "sampled/reward": jnp.sum(jnp.where(valid_BN, reward_BN, 0.0)) / judged,
        "sampled/groups_with_signal": jnp.mean(signal_B.astype(jnp.float32)),
    }


def build_step(
    run: assemble.Run, answer: Callable, learn: Callable, where: TrainState
) -> Callable[..., tuple[TrainState, dict[str, Any]]]:
    """(state, base, verifier, next_batch, step) -> (state, metrics).

    `next_batch()` gives `config.train.dynamic_sampling.batch_size` pictures. A step asks for more
    until `config.train.batch_size` groups have signal, `max_rounds` times at most. What is too much
    is dropped; what is missing then stays empty, is counted in the metrics and warned of.

    Args:
      run: policy, verifier, data.
      answer: (state, base, verifier, batch, number) -> features, rollout, categories, validity.
      learn: `step.learn` with all its options; traceable.
      where: shardings of the state.
    """
    size, options = run.config.train.batch_size, run.config.train.dynamic_sampling
    rows, copies = sharding.batch_sharding(run.mesh), sharding.replicated(run.mesh)
    reward = assemble.reward_of(run.config)

    def keep(pool, batch, features_BMD, rollout, category_BN, valid_BN):
        reward_BN = reward(category_BN, valid_BN)
        signal_B = advantages.has_signal(reward_BN, valid_BN)
        bare = batch.replace(patches_BSC=None, layout=None, features_BMD=None)
        fresh = Groups(bare, features_BMD, rollout, category_BN, valid_BN)
        pool = gather(pool, fresh, signal_B, size=size, pad_id=run.model_config.eos_token_id)
        summary = describe(category_BN, valid_BN, reward_BN, signal_B)
        return pool, (jnp.sum(pool.prompt.weight_B), summary)

    def learn_from(state, base, pool):
        return learn(
            state,
            base,
            pool.prompt,
            pool.features_BMD,
            pool.rollout,
            pool.category_BN,
            pool.valid_BN,
        )

    keep_program = jax.jit(keep, out_shardings=(rows, copies))
    learn_program = jax.jit(learn_from, donate_argnums=0, out_shardings=(where, copies))

    def program(state, base, verifier, next_batch, number):
        pool, filled, summaries = None, 0, []
        while filled < size and len(summaries) < options.max_rounds:
            batch = next_batch()
            # A picture that comes twice in a step is answered anew.
            draw = np.uint32(int(number) * options.max_rounds + len(summaries))
            found = answer(state, base, verifier, batch, draw)
            pool, (count, summary) = keep_program(pool, batch, *found)
            filled = int(count)
            summaries.append(summary)
        if filled < size:
            logging.warning(
                "step %d: %d rounds of %d pictures gave %d of %d groups whose rewards differ; the "
                "update is that much smaller (config.train.dynamic_sampling)",
                *(int(number), len(summaries), options.batch_size, filled, size),
            )
        state, metrics = learn_program(state, base, pool)
        means = {name: np.mean([float(s[name]) for s in summaries]) for name in summaries[0]}
        counts = {
            "dynamic_sampling/rounds": len(summaries),
            "dynamic_sampling/filled": filled / size,
        }
        return state, metrics | means | counts

    return program
