"""The clipped surrogate of GRPO, with a dual clip for negative advantages."""

import jax
import jax.numpy as jnp

from speciarl_jax.rl.losses import ratio


def policy_loss(
    logp_BNT: jax.Array,
    old_logp_BNT: jax.Array,
    advantage_BN: jax.Array,
    mask_BNT: jax.Array,
    *,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    dual_clip: float = 3.0,
    log_ratio_clamp: float = 20.0,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Computes the clipped policy-gradient loss of each token (PPO, arXiv 1707.06347, eq. 7;
    dual clip, arXiv 1912.09729).

    `max(-A rho, -A clip(rho, 1 - clip_low, 1 + clip_high))`, and for `A < 0` at most
    `-A dual_clip`, with `rho = exp(logp - old_logp)`.

    Args:
      logp_BNT: float32 log-probabilities of the sampled tokens under the policy, differentiable.
      old_logp_BNT: float32, the same under the policy before the update.
      advantage_BN: float32, one advantage for a whole rollout.
      mask_BNT: bool, the tokens that take part; elsewhere log-probabilities are arbitrary.
      clip_low: how far the ratio may fall below 1.
      clip_high: how far it may rise above 1.
      dual_clip: bound on the ratio where the advantage is negative; must be above 1.
      log_ratio_clamp: the log-ratio is clamped to +-this before it is exponentiated.

    Returns:
      The loss of each token, float32 [B, N, T], and metrics of the same shape: `clip_frac`,
      `ratio`, `approx_kl` (k1 between the old and the current policy). `training.update`
      aggregates both.

    Raises:
      ValueError: `dual_clip` is not above 1.
    """
    if not dual_clip > 1.0:
        raise ValueError(
            f"config.loss.options.dual_clip is {dual_clip}; it bounds a ratio around 1, so set it "
            "above 1"
        )
    log_ratio_BNT = ratio.log_ratio(logp_BNT, old_logp_BNT, mask_BNT, clamp=log_ratio_clamp)
    ratio_BNT = jnp.exp(log_ratio_BNT)
    advantage_BN1 = jax.lax.stop_gradient(advantage_BN)[..., None]
    plain_BNT = -advantage_BN1 * ratio_BNT
    clipped_BNT = -advantage_BN1 * jnp.clip(ratio_BNT, 1.0 - clip_low, 1.0 + clip_high)
    loss_BNT = jnp.maximum(plain_BNT, clipped_BNT)
    loss_BNT = jnp.where(
        advantage_BN1 < 0, jnp.minimum(loss_BNT, -advantage_BN1 * dual_clip), loss_BNT
    )
    metrics = {
        "clip_frac": clipped_BNT > plain_BNT,
        "ratio": ratio_BNT,
        "approx_kl": -log_ratio_BNT,
    }
    return loss_BNT, metrics
