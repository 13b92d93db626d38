"""The clipped surrogate of GSPO: one ratio for a whole answer."""

import jax
import jax.numpy as jnp


def policy_loss(
    logp_BNT: jax.Array,
    old_logp_BNT: jax.Array,
    advantage_BN: jax.Array,
    weight_BNT: jax.Array,
    *,
    clip_low: float = 3e-4,
    clip_high: float = 4e-4,
    log_ratio_clamp: float = 20.0,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Clipped loss on the length-normalised ratio (GSPO, arXiv 2507.18071, equations 5 to 7).

    `-min(s A, clip(s, 1 - clip_low, 1 + clip_high) A)` with `s = exp(mean_t(logp - old_logp))`. The
    paper averages over answers: `token_weights.sequence_mean`.

    Args:
      logp_BNT: log-probabilities of the sampled tokens under the policy, differentiable.
      old_logp_BNT: the same under the policy that sampled them.
      advantage_BN: one advantage for a whole answer.
      weight_BNT: float32 weight of each token, zero outside the answers; an answer weighs as much
        as its tokens together.
      clip_low: how far the ratio may fall below 1.
      clip_high: how far it may rise above 1.
      log_ratio_clamp: the mean log-ratio is clamped to +-this before it is exponentiated.

    Returns:
      The loss (float32 scalar) and metrics, each a weighted sum: `clip_frac`, `ratio`,
      `approx_kl` (k1 between the sampling and the current policy).
    """
    taken_BNT = weight_BNT > 0
    # Outside the answers log-probabilities are arbitrary; keep them out of the exponential.
    log_ratio_BNT = jnp.where(taken_BNT, logp_BNT - jax.lax.stop_gradient(old_logp_BNT), 0.0)
    length_BN = jnp.maximum(jnp.sum(taken_BNT, axis=-1), 1)
    log_ratio_BN = jnp.sum(log_ratio_BNT, axis=-1) / length_BN
    log_ratio_BN = jnp.clip(log_ratio_BN, -log_ratio_clamp, log_ratio_clamp)
    ratio_BN = jnp.exp(log_ratio_BN)
    advantage_BN = jax.lax.stop_gradient(advantage_BN)
    plain_BN = -advantage_BN * ratio_BN
    clipped_BN = -advantage_BN * jnp.clip(ratio_BN, 1.0 - clip_low, 1.0 + clip_high)
    weight_BN = jnp.sum(weight_BNT, axis=-1)
    metrics = {
        "clip_frac": jnp.sum(weight_BN * (clipped_BN > plain_BN)),
        "ratio": jnp.sum(weight_BN * ratio_BN),
        "approx_kl": -jnp.sum(weight_BN * log_ratio_BN),
    }
    return jnp.sum(weight_BN * jnp.maximum(plain_BN, clipped_BN)), metrics
