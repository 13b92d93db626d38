"""The negative log-likelihood of given completions: supervised training."""

import jax
import jax.numpy as jnp


def policy_loss(
    logp_BNT: jax.Array,
    old_logp_BNT: jax.Array,
    advantage_BN: jax.Array,
    mask_BNT: jax.Array,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Computes `-A logp` of each token; with advantages of 1, cross-entropy in nats.

    Arguments as for `grpo.policy_loss`; `old_logp_BNT` is not read. Returns the loss of each token,
    float32 [B, N, T], and no metrics.
    """
    del old_logp_BNT
    logp_BNT = jnp.where(mask_BNT, logp_BNT, 0.0)
    return -jax.lax.stop_gradient(advantage_BN)[..., None] * logp_BNT, {}
