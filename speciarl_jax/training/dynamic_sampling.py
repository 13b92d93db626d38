"""Dynamic sampling: a step samples on until every group of its batch has something to teach.

DAPO (arXiv 2503.14476, section 3.2, equation 11). A group whose answers all earn the same has no
advantage; it only dilutes the batch. What counts is the reward of the verdicts: lengths and
divergence from the reference give no signal of their own.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from absl import logging

from speciarl_jax.experiment import algorithm
from speciarl_jax.experiment.run import Run
from speciarl_jax.models.prompt_batch import PromptBatch
from speciarl_jax.rl import advantages
from speciarl_jax.rollout.types import Rollout
from speciarl_jax.runtime import sharding
from speciarl_jax.training import host_verified_step, rl_step
from speciarl_jax.training.state import TrainState
from speciarl_jax.verifiers.category import Category


@flax.struct.dataclass
class Groups:
    """Answers with their verdicts. A group that is not to be learned from has `weight_B` 0.

    Attributes:
      prompt: without patches and layout, since the encoder has run.
      features_BMD: of the images.
      rollout: the answers.
      category_BN: their categories.
      valid_BN: whether a verdict exists.
    """

    prompt: PromptBatch
    features_BMD: jax.Array
    rollout: Rollout
    category_BN: jax.Array
    valid_BN: jax.Array


def gather(pool: Groups | None, fresh: Groups, signal_B: jax.Array, *, size: int) -> Groups:
    """The pool and, behind it, those groups of `fresh` that have signal, cut to `size`; in order.

    Args:
      pool: what was gathered so far, as long as `fresh` (`alike`), or None.
      fresh: groups that were just sampled.
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


def alike(one: Groups, other: Groups, pad: Callable[..., Groups]) -> tuple[Groups, Groups]:
    """Both with prompts and features as long as the longer ones; what is long enough stays.

    Args:
      one: groups.
      other: groups.
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
    """Longer prompts and features; no number depends on padding.

    Args:
      groups: shorter ones.
      prompt_tokens: P of the result.
      image_tokens: M of the result.
      pad_id: token that pads prompts on the left; no image placeholder.
    """
    prompt = groups.prompt
    left = prompt_tokens - prompt.tokens_BP.shape[1]
    behind = image_tokens - groups.features_BMD.shape[1]

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
    category_BN: jax.Array,
    valid_BN: jax.Array,
    taken_BN: jax.Array,
    reward_BN: jax.Array,
    signal_B: jax.Array,
    weight_B: jax.Array,
) -> dict[str, jax.Array]:
    """What all sampled answers were like: those that are learned from are a choice.

    The mean reward is over the answers of groups with enough verdicts, `taken_BN`.
    """
    judged = jnp.sum(valid_BN)
    count = jnp.maximum(judged, 1)
    asked = jnp.maximum(jnp.sum(weight_B) * valid_BN.shape[1], 1)
    shares = {
        f"sampled/{c.name.lower()}": jnp.sum(valid_BN & (category_BN == c)) / count
        for c in Category
    }
    return shares | {
        "sampled/unjudged": 1 - judged / asked,
        "sampled/reward": jnp.sum(reward_BN * taken_BN) / jnp.maximum(jnp.sum(taken_BN), 1),
        "sampled/groups_with_signal": jnp.mean(signal_B.astype(jnp.float32)),
    }


def means(rounds: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Metrics of several rounds, averaged."""
    return {name: np.mean([float(one[name]) for one in rounds]) for name in rounds[0]}


def host_answer(run: Run, rollout_of: Callable) -> Callable:
    """`answer` of `build_step` for a host verifier; says what `host_verified_step.describe` takes.

    Args:
      run: with a host verifier.
      rollout_of: (lora, base, batch, number) -> features and rollout; traceable.
    """

    def name(number):
        this_step, earlier = divmod(number, run.config.train.dynamic_sampling.max_rounds)
        return f"step {this_step}, round {earlier + 1}"

    judged = host_verified_step.answerer(run, rollout_of, name)
    rows = sharding.batch_sharding(run.mesh)
    join_program = jax.jit(host_verified_step.join_parts, out_shardings=rows)

    def answer(state, base, verifier, batch, number):
        del verifier
        found = judged(state.lora, base, batch, number)
        return *join_program(found.parts), found.category_BN, found.valid_BN, found

    return answer


def build_step(
    run: Run,
    answer: Callable,
    learn: Callable,
    where: TrainState,
    describe_verdicts: Callable[[Sequence[Any]], Mapping[str, Any]] = means,
) -> Callable[..., tuple[TrainState, dict[str, Any]]]:
    """(state, base, verifier, next_batch, step) -> (state, metrics).

    `next_batch()` gives `config.train.dynamic_sampling.batch_size` images. A step asks for more
    until `config.train.batch_size` groups have signal, `max_rounds` times at most. What is too much
    is dropped; what is missing then stays empty, is counted in the metrics and warned of.

    Args:
      run: policy, verifier, data.
      answer: (state, base, verifier, batch, number) -> features, rollout, categories, validity, and
        what `describe_verdicts` takes.
      learn: `rl_step.learn` with all its options; traceable.
      where: shardings of the state.
      describe_verdicts: what `answer` says of its verdicts in all rounds -> metrics.
    """
    size, options = run.config.train.batch_size, run.config.train.dynamic_sampling
    rows, copies = sharding.batch_sharding(run.mesh), sharding.replicated(run.mesh)
    reward, min_judged_fraction = (
        algorithm.reward_of(run.config),
        run.config.verifier.min_judged_fraction,
    )

    noise = algorithm.noise_of(run.config)

    def keep(pool, fresh, learned):
        # A group that lacks verdicts would leave the update, so it must not take a place in it.
        taken_BN = rl_step.whole_groups(fresh.valid_BN, min_judged_fraction)
        image_id_B, category_BN = fresh.prompt.image_id_B, fresh.category_BN
        # The verdicts that `learn` will reward.
        rewarded_BN = noise(category_BN, image_id_B, learned) if noise else category_BN
        reward_BN = reward(rewarded_BN, taken_BN)
        signal_B = advantages.has_signal(reward_BN, taken_BN)
        pool = gather(pool, fresh, signal_B, size=size)
        weight_B = fresh.prompt.weight_B
        summary = describe(category_BN, fresh.valid_BN, taken_BN, reward_BN, signal_B, weight_B)
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

    # What depends on two sizes only pads; the rest is compiled once for each size of a pool.
    keep_program = jax.jit(keep, out_shardings=(rows, copies))
    pad_rows = functools.partial(pad, pad_id=run.model_config.eos_token_id)
    pad_program = jax.jit(pad_rows, static_argnums=(1, 2), out_shardings=rows)
    learn_program = jax.jit(learn_from, donate_argnums=0, out_shardings=(where, copies))

    def program(state, base, verifier, next_batch, number):
        pool, filled, summaries, said = None, 0, [], []
        while filled < size and len(summaries) < options.max_rounds:
            batch = next_batch()
            # An image that comes twice in a step is answered anew.
            draw = np.uint32(int(number) * options.max_rounds + len(summaries))
            *found, verdicts = answer(state, base, verifier, batch, draw)
            said.append(verdicts)
            bare = batch.without_images()
            fresh = Groups(bare, *found)
            if pool is not None:
                pool, fresh = alike(pool, fresh, pad_program)
            pool, (count, summary) = keep_program(pool, fresh, state.step)
            filled = int(count)
            summaries.append(summary)
        if filled < size:
            logging.warning(
                "step %d: %d rounds of %d images gave %d of %d groups whose rewards differ; the "
                "update is that much smaller (config.train.dynamic_sampling)",
                *(int(number), len(summaries), options.batch_size, filled, size),
            )
        state, metrics = learn_program(state, base, pool)
        counts = {
            "dynamic_sampling/rounds": len(summaries),
            "dynamic_sampling/filled": filled / size,
        }
        return state, metrics | means(summaries) | counts | describe_verdicts(said)

    return program
