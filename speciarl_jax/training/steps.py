"""Puts a training step together; the one place where that is done."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from speciarl_jax.experiment import host_verification
from speciarl_jax.experiment.run import Run
from speciarl_jax.rollout import sample_and_verify
from speciarl_jax.runtime import (
    sharding,
    step_timer,
)
from speciarl_jax.training import build_update, dynamic_sampling, host_verified_step, sft_step
from speciarl_jax.training.state import TrainState


def rollout_function(run: Run) -> Callable:
    """(lora, base, batch, step) -> features and rollout, as training samples them; traceable."""
    config = run.config
    sample = run.sampler(config.rollout.num_rollouts, config.rollout.max_tokens)
    temperature = np.float32(config.rollout.temperature)
    top_p = np.float32(config.rollout.top_p)

    def rollout_of(lora, base, batch, number):
        key = jax.random.fold_in(jax.random.key(config.seed), number)
        return sample(lora, base, batch, key, temperature, top_p)

    return rollout_of


def build_step(
    run: Run, optimizer: Any, where: TrainState, mark: Callable = step_timer.ignore
) -> Callable:
    """(state, base, verifier, batch, step) -> (state, metrics): rollout -> verify -> reward ->
    advantage -> update.

    One compiled program with `config.train.fused`, otherwise three. A host verifier sits between
    programs in any case (`judging`). With dynamic sampling it takes a function that gives the next
    batch instead of a batch. Where there are several, `mark` is told when a stage ends.
    """
    config = run.config
    if config.train.objective == "sft":
        return sft_step.build_step(run, optimizer, where)
    rollout_of, learn = rollout_function(run), build_update.learner(run, optimizer)
    copies, rows = sharding.replicated(run.mesh), sharding.batch_sharding(run.mesh)

    def verdicts_of(verifier, batch, rollout):
        category_BN, valid_BN, probability_BN = sample_and_verify.verify_with_probability(
            verifier, batch, rollout
        )
        return (
            category_BN,
            valid_BN,
            sample_and_verify.describe_probability(probability_BN, valid_BN),
        )

    def whole(state, base, verifier, batch, number):
        features_BMD, rollout = rollout_of(state.lora, base, batch, number)
        category_BN, valid_BN, sure = verdicts_of(verifier, batch, rollout)
        state, found = learn(state, base, batch, features_BMD, rollout, category_BN, valid_BN)
        return state, found | sure

    dynamic = config.train.dynamic_sampling.max_rounds > 0
    if host_verification.is_host(run):
        if dynamic:
            answer = dynamic_sampling.host_answer(run, rollout_of)
            return dynamic_sampling.build_step(
                run, answer, learn, where, host_verified_step.describe
            )
        return host_verified_step.build_step(run, rollout_of, learn, where, mark)
    if config.train.fused and not dynamic:
        return jax.jit(whole, donate_argnums=0, out_shardings=(where, copies))
    rollout_program = jax.jit(rollout_of, out_shardings=rows)
    verify_program = jax.jit(verdicts_of, out_shardings=(rows, rows, copies))

    def answer(state, base, verifier, batch, number):
        features_BMD, rollout = rollout_program(state.lora, base, batch, number)
        mark("rollout", rollout.mask_BNT)
        category_BN, valid_BN, sure = verify_program(verifier, batch, rollout)
        mark("verify", valid_BN)
        return features_BMD, rollout, category_BN, valid_BN, sure

    if dynamic:
        return dynamic_sampling.build_step(run, answer, learn, where)
    learn_program = jax.jit(learn, donate_argnums=0, out_shardings=(where, copies))

    def in_three(state, base, verifier, batch, number):
        *found, sure = answer(state, base, verifier, batch, number)
        state, metrics = learn_program(state, base, batch, *found)
        return state, metrics | sure

    return in_three
