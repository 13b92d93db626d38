"""The loss of GMPO: the geometric mean of the clipped ratios of a rollout's tokens."""

import jax
import jax.numpy as jnp

from speciarl_jax.rl.losses import ratio


def policy_loss(
    logp_BNT: jax.Array,
    old_logp_BNT: jax.Array,
    advantage_BN: jax.Array,
    mask_BNT: jax.Array,
    *,
    clip_low: float = 0.4,
    clip_high: float = 0.4,
    log_ratio_clamp: float = 20.0,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Computes the loss on a geometric mean of clipped ratios (GMPO, arXiv 2507.20673, section 3).

    `-A (prod_t c_t)**(1 / length)`. The ratio `c_t` of a token is clipped before the product, and
    only where clipping makes the objective smaller: at most `exp(clip_high)` for `A > 0`, at least
    `exp(-clip_low)` for `A < 0`. The paper clips to `exp(+-0.4)` and averages over rollouts:
    `token_weights.sequence_mean`.

    Arguments and results are those of `grpo.policy_loss`, but for its dual clip; the bounds are
    those of log-ratios, in nats. All tokens of a rollout have one loss. `ratio` is the geometric
    mean; `clip_frac` and `approx_kl` are of single tokens.
    """
    log_ratio_BNT = ratio.log_ratio(logp_BNT, old_logp_BNT, mask_BNT, clamp=log_ratio_clamp)
    advantage_BN1 = jax.lax.stop_gradient(advantage_BN)[..., None]
    clipped_BNT = jnp.where(
        advantage_BN1 >= 0,
        jnp.minimum(log_ratio_BNT, clip_high),
        jnp.maximum(log_ratio_BNT, -clip_low),
    )
    length_BN1 = jnp.maximum(jnp.sum(mask_BNT, axis=-1, keepdims=True), 1)
    ratio_BN1 = jnp.exp(jnp.sum(clipped_BNT, axis=-1, keepdims=True) / length_BN1)
    metrics = {
        "clip_frac": clipped_BNT != log_ratio_BNT,
        "ratio": jnp.broadcast_to(ratio_BN1, mask_BNT.shape),
        "approx_kl": -log_ratio_BNT,
    }
    return jnp.broadcast_to(-advantage_BN1 * ratio_BN1, mask_BNT.shape), metrics
