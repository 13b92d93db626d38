"""What a configuration chooses of the method: reward, advantages, loss, with their options."""

import functools
from typing import Any

import jax.numpy as jnp
import ml_collections

from speciarl_jax.rl import advantages, optimizer, verdict_noise
from speciarl_jax.rl.losses import token_weights
from speciarl_jax.rl.rewards import overlong
from speciarl_jax.runtime import plugins


def reward_of(config: ml_collections.ConfigDict) -> Any:
    """(category_BN, valid_BN) -> reward_BN."""
    reward = plugins.find("rl.rewards", config.reward.name, "reward")
    return functools.partial(reward, **config.reward.options)


def noise_of(config: ml_collections.ConfigDict) -> Any:
    """(category_BN, image_id_B, step) -> category_BN that are rewarded; None without noise."""
    noise = config.label_noise
    return functools.partial(verdict_noise.noisy, **noise) if noise.rate else None


def parts_of(config: ml_collections.ConfigDict) -> dict[str, Any]:
    """Reward, advantages, policy loss, ... with their options."""
    policy_loss = plugins.find("rl.losses", config.loss.name, "policy_loss")
    weights = getattr(token_weights, config.loss.token_weights)
    return {
        "reward": reward_of(config),
        "advantages": functools.partial(advantages.group_advantages, **config.advantage),
        "policy_loss": functools.partial(policy_loss, **config.loss.options),
        "token_weights": functools.partial(weights, **config.loss.token_weights_options),
        "overlong": functools.partial(
            overlong.penalty,
            max_tokens=config.rollout.max_tokens,
            buffer=config.reward.overlong_buffer,
            weight=config.reward.overlong_penalty,
        ),
    }


def try_parts(config: ml_collections.ConfigDict) -> None:
    """Calls what comes late in a run with made-up answers, before compute is spent on more.

    Raises:
      ValueError: an unknown name, or a value that a part refuses.
      TypeError: an option that a part does not have.
    """
    parts = parts_of(config)
    valid_BN = jnp.ones((1, 2), bool)
    advantage_BN = parts["advantages"](parts["reward"](jnp.array([[0, 4]]), valid_BN), valid_BN)
    weight_BNT = parts["token_weights"](valid_BN[..., None])
    parts["policy_loss"](*[jnp.zeros((1, 2, 1))] * 2, advantage_BN, weight_BNT)
    if config.reward.overlong_penalty:
        parts["overlong"](jnp.ones((1, 2)))
    verdict_noise.noisy(jnp.zeros((1, 2), int), jnp.zeros(1, int), 0, **config.label_noise)
    optimizer.make(**config.optimizer)
