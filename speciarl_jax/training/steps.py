"""Puts a training step together; training, the planner and the tests take it from here.

    rollout -> verify -> reward -> advantage -> update

is one compiled program (`config.train.fused`) or one for each stage. A host verifier stands between
programs, and dynamic sampling repeats the first two.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from speciarl_jax.experiment import host_verification, in_graph_verification
from speciarl_jax.experiment.run import Run
from speciarl_jax.rl.optimizer import Optimizer
from speciarl_jax.rollout import rescore
from speciarl_jax.rollout.types import Groups
from speciarl_jax.runtime import activation_sharding, sharding, step_timer
from speciarl_jax.training import ahead, dynamic_sampling, host_verified_step, rl_step, sft_step
from speciarl_jax.training import state as state_lib
from speciarl_jax.training import update as update_lib
from speciarl_jax.training.state import TrainState

Metrics = dict[str, Any]


class Stages(NamedTuple):
    """Holds the stages of a step as pure, traceable functions."""

    # (lora, base, batch, key of `key_of`) -> features [B, M, D] and `Rollout`
    rollout: Callable[..., Any]
    # (verifier, batch, rollout) -> category_BN, valid_BN, base_rate_BN (or None), metrics
    verify: Callable[..., Any]
    # (state, base, groups) -> (state, metrics): reward, advantage and policy update.
    update: Callable[..., Any]


def stages(run: Run, optimizer: Optimizer) -> Stages:
    """Binds the stages of a step to what a run chooses."""
    config, algorithm = run.config, run.algorithm
    sample = run.sampler(config.rollout.num_rollouts, config.rollout.max_tokens, training=True)
    moves = algorithm.reference_decay < 1
    temperature, top_p = np.float32(config.rollout.temperature), np.float32(config.rollout.top_p)
    policy = {"graphdef": run.graphdef, "banned_V": run.banned_V}
    update = functools.partial(
        update_lib.update, algorithm=algorithm, optimizer=optimizer, **policy
    )
    score = functools.partial(
        rescore.answer_logp,
        parts=algorithm.mini_batches * algorithm.micro_batches,
        temperature=algorithm.temperature,
        chunk_size=algorithm.logprob_chunk,
        num_length_buckets=algorithm.num_length_buckets,
        **policy,
    )

    def rollout(lora, base, batch, key_data):
        key = jax.random.wrap_key_data(key_data)
        return sample(lora, base, batch, key, temperature, top_p)

    def verify(verifier, batch, rollout):
        found = in_graph_verification.verify(verifier, batch, rollout)
        base_rate_BN = found.base_rate_BN if algorithm.information is not None else None
        metrics = in_graph_verification.describe(found)
        if algorithm.consensus is not None:
            found, agreed = in_graph_verification.by_consensus(found, batch, algorithm.consensus)
            metrics |= agreed
        return found.category_BN, found.valid_BN, base_rate_BN, metrics

    def learn(state: TrainState, base, groups: Groups):
        batch, metrics = rl_step.make_update_batch(
            state.lora,
            base,
            groups,
            state.step,
            algorithm=algorithm,
            score=score,
            end_ids=run.end_ids,
            reference=state.reference if moves else None,
        )
        state, updated = update_lib.update_on_all(state, base, batch, update, algorithm)
        if moves:
            state = state.replace(
                reference=optax.incremental_update(
                    state.lora, state.reference, 1 - algorithm.reference_decay
                )
            )
        return state, updated | metrics

    return Stages(rollout, verify, activation_sharding.on_mesh(run.mesh, learn))


def key_of(run: Run, number: Any) -> np.ndarray:
    """Returns the key that a step (or a round of one) samples with, uint32 [2].

    Programs take it as an argument, so that runs of all seeds share them.

    Args:
      number: of the step, or of the round.
    """
    key = jax.random.fold_in(jax.random.key(run.config.seed), number)
    return np.asarray(jax.random.key_data(key))


def programs(run: Run, optimizer: Optimizer, state_sharding: TrainState) -> dict[str, Any]:
    """Jits what a training step of this run executes; nothing is compiled yet.

    Returns:
      Either "step", the whole of it: (state, base, verifier, batch, key) -> (state, metrics); or
      its stages "rollout", "verify" (not with a host verifier) and "update", as in `Stages`.
    """
    replicated = sharding.replicated(run.mesh)
    batch_sharding = sharding.batch_sharding(run.mesh)
    to_state = {"donate_argnums": 0, "out_shardings": (state_sharding, replicated)}
    if run.config.train.objective == "sft":
        return {"step": jax.jit(sft_step.step_of(run, optimizer), **to_state)}
    rollout, verify, update = stages(run, optimizer)
    on_host = host_verification.is_host(run)
    if run.config.train.fused and not on_host and not dynamic_sampling.is_on(run):

        def whole(state, base, verifier, batch, key_data):
            features_BMD, sampled = rollout(state.lora, base, batch, key_data)
            *verdicts, metrics = verify(verifier, batch, sampled)
            groups = Groups(batch, features_BMD, sampled, *verdicts)
            state, updated = update(state, base, groups)
            return state, updated | metrics

        return {"step": jax.jit(whole, **to_state)}
    found = {"rollout": jax.jit(rollout, out_shardings=batch_sharding)}
    if not on_host:
        shardings = (batch_sharding, batch_sharding, batch_sharding, replicated)
        found["verify"] = jax.jit(verify, out_shardings=shardings)
    return found | {"update": jax.jit(update, **to_state)}


class Started(NamedTuple):
    """Holds what a run begins its steps with."""

    optimizer: Optimizer
    state: TrainState  # before the first update
    state_sharding: TrainState
    programs: dict[str, Any]  # of `programs`


def start(run: Run) -> Started:
    """Makes the optimizer, the state before the first update, and the programs of the steps."""
    optimizer, state, state_sharding = state_lib.start(run)
    return Started(optimizer, state, state_sharding, programs(run, optimizer, state_sharding))


def train_step(
    run: Run,
    optimizer: Optimizer,
    state_sharding: TrainState,
    stage_done: Callable[..., None] = step_timer.ignore,
    compiled: dict[str, Any] | None = None,
) -> Callable[..., tuple[TrainState, Metrics]]:
    """Puts the step of a run together.

    Args:
      stage_done: is told when a stage ends (`step_timer`), where there are several programs.
      compiled: of `programs`, for this run; made here when None.

    Returns:
      (state, base, verifier, batch, number) -> (state, metrics). With dynamic sampling, and where
      batches are sampled ahead, it takes a function that gives the next batch instead of a batch.
    """
    compiled = programs(run, optimizer, state_sharding) if compiled is None else compiled
    if "step" in compiled:
        whole = compiled["step"]
        return lambda state, base, verifier, batch, number: whole(
            state, base, verifier, batch, key_of(run, number)
        )

    def rollout(lora, base, batch, number):
        return compiled["rollout"](lora, base, batch, key_of(run, number))

    if host_verification.is_host(run):
        judge = host_verified_step.Judge(run, rollout, stage_done)
        summarise = host_verified_step.describe
        if run.config.train.ahead:
            return ahead.Step(judge, compiled["update"], summarise, run.config.train.steps)
    else:
        summarise = means

        def judge(state, base, verifier, batch, number):
            features_BMD, sampled = rollout(state.lora, base, batch, number)
            stage_done("rollout", sampled.mask_BNT)
            *verdicts, metrics = compiled["verify"](verifier, batch, sampled)
            stage_done("verify", verdicts)
            return Groups(batch, features_BMD, sampled, *verdicts), metrics

    if dynamic_sampling.is_on(run):
        return dynamic_sampling.train_step(run, judge, summarise, compiled["update"])

    def in_stages(state, base, verifier, batch, number):
        # Before the update: the state is as it was if the judge is unavailable.
        groups, verdicts = judge(state, base, verifier, batch, number)
        state, metrics = compiled["update"](state, base, groups)
        return state, metrics | summarise([verdicts])

    return in_stages


def means(rows: Sequence[Mapping[str, Any]]) -> Metrics:
    """Averages metrics over rounds of sampling."""
    if len(rows) == 1:
        return dict(rows[0])
    return {name: jnp.mean(jnp.stack([row[name] for row in rows])) for name in rows[0]}
