"""From the parts of a run to its update: what `rl_step.learn` and `update.update` are told."""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from speciarl_jax.experiment import algorithm
from speciarl_jax.experiment.run import Run
from speciarl_jax.rl import optimizer
from speciarl_jax.rl.losses import kl
from speciarl_jax.rollout import rescore
from speciarl_jax.runtime import activation_sharding, sharding
from speciarl_jax.training import rl_step
from speciarl_jax.training import update as update_lib
from speciarl_jax.training.state import TrainState, init_state


def update_of(run: Run, optimizer_: Any, **changes: Any) -> Any:
    """`update.update` but for (state, base, batch), with some options changed."""
    config, parts = run.config, algorithm.parts_of(run.config)
    options = {
        "graphdef": run.graphdef,
        "optimizer": optimizer_,
        "policy_loss": parts["policy_loss"],
        "token_weights": parts["token_weights"],
        "banned_V": run.banned_V,
        "kl_coefficient": config.loss.kl_coefficient if config.loss.kl_in == "loss" else 0.0,
        "kl_estimator": getattr(kl, config.loss.kl_estimator),
        "old_logprobs": config.loss.old_logprobs,
        "tis_cap": config.loss.tis_cap,
        "temperature": config.rollout.temperature,
        "micro_batches": config.train.micro_batches,
        "logprob_chunk": config.train.logprob_chunk,
        "remat": config.train.remat,
        "num_length_buckets": config.train.num_length_buckets,
    }
    return functools.partial(
        activation_sharding.on_mesh(run.mesh, update_lib.update), **options | changes
    )


def learner(run: Run, optimizer_: Any) -> Any:
    """`rl_step.learn` but for (state, base, batch, features, rollout, category, valid)."""
    config, parts = run.config, algorithm.parts_of(run.config)
    loss, updates = config.loss, config.train.mini_batches * config.train.ppo_epochs
    score = functools.partial(
        rescore.answer_logp,
        graphdef=run.graphdef,
        parts=config.train.mini_batches * config.train.micro_batches,
        banned_V=run.banned_V,
        temperature=config.rollout.temperature,
        chunk_size=config.train.logprob_chunk,
        num_length_buckets=config.train.num_length_buckets,
    )

    def divergence(lora, base, batch, features_BMD, rollout, logp_BNT):
        reference_BNT = score(lora, base, batch, features_BMD, rollout, use_lora=False)
        kl_BNT = getattr(kl, loss.kl_estimator)(
            jnp.where(rollout.mask_BNT, logp_BNT, 0), jnp.where(rollout.mask_BNT, reference_BNT, 0)
        )
        return loss.kl_coefficient * jnp.sum(kl_BNT, axis=-1)

    # The only update of a step is its own trainer before the update.
    rescored = loss.old_logprobs == "recomputed" and updates > 1
    return functools.partial(
        activation_sharding.on_mesh(run.mesh, rl_step.learn),
        reward=parts["reward"],
        advantages=parts["advantages"],
        update=update_of(run, optimizer_),
        mini_batches=config.train.mini_batches,
        eos_id=run.model_config.eos_token_id,
        noise=algorithm.noise_of(config),
        min_judged_fraction=config.verifier.min_judged_fraction,
        ppo_epochs=config.train.ppo_epochs,
        overlong=parts["overlong"] if config.reward.overlong_penalty else None,
        old_logp=functools.partial(score, use_lora=True) if rescored else None,
        divergence=divergence if loss.kl_in == "reward" and loss.kl_coefficient else None,
        shown=config.train.num_logged_images if config.train.samples_every else 0,
    )


def abstract_state(mesh: jax.sharding.Mesh, lora: Any, optimizer_: Any) -> tuple[Any, Any]:
    """Shapes, dtypes and places of the state that trains these adapters, and the places alone."""
    shapes = jax.eval_shape(lambda lora: init_state(lora, optimizer_), lora)
    where = sharding.shardings_of(mesh, shapes)
    return sharding.placed(shapes, where), where


def start_state(run: Run) -> tuple[Any, TrainState, Any]:
    """The optimizer, the state before the first update, and the shardings of the state."""
    optimizer_ = optimizer.make(**run.config.optimizer)
    _, where = abstract_state(run.mesh, run.lora, optimizer_)
    state = jax.jit(lambda lora: init_state(lora, optimizer_), out_shardings=where)(run.lora)
    return optimizer_, state, where
