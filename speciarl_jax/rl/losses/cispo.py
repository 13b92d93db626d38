"""The loss of CISPO: the importance weight is clipped, and every token keeps its gradient."""

import jax
import jax.numpy as jnp

from speciarl_jax.rl.losses import ratio


def policy_loss(
    logp_BNT: jax.Array,
    old_logp_BNT: jax.Array,
    advantage_BN: jax.Array,
    mask_BNT: jax.Array,
    *,
    clip_low: float = 1.0,
    clip_high: float = 4.0,
    log_ratio_clamp: float = 20.0,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Computes the log-likelihood under a clipped weight (CISPO, arXiv 2506.13585, eq. 4-5).

    `-sg(clip(rho, 1 - clip_low, 1 + clip_high)) A logp`, where `sg` stops the gradient. The paper
    averages over all tokens: `token_weights.token_mean`. It sets no lower bound, as a `clip_low` of
    1 does, and does not print its upper one.

    Arguments and results are those of `grpo.policy_loss`, but for its dual clip; `clip_frac` is the
    share of clipped weights.
    """
    logp_BNT = jnp.where(mask_BNT, logp_BNT, 0.0)
    log_ratio_BNT = ratio.log_ratio(logp_BNT, old_logp_BNT, mask_BNT, clamp=log_ratio_clamp)
    log_ratio_BNT = jax.lax.stop_gradient(log_ratio_BNT)
    ratio_BNT = jnp.exp(log_ratio_BNT)
    weight_BNT = jnp.clip(ratio_BNT, 1.0 - clip_low, 1.0 + clip_high)
    advantage_BN1 = jax.lax.stop_gradient(advantage_BN)[..., None]
    metrics = {
        "clip_frac": weight_BNT != ratio_BNT,
        "ratio": ratio_BNT,
        "approx_kl": -log_ratio_BNT,
    }
    return -advantage_BN1 * weight_BNT * logp_BNT, metrics
