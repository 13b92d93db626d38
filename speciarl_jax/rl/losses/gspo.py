"""The clipped surrogate of GSPO: one ratio for a whole rollout."""

import jax
import jax.numpy as jnp


def policy_loss(
    logp_BNT: jax.Array,
    old_logp_BNT: jax.Array,
    advantage_BN: jax.Array,
    mask_BNT: jax.Array,
    *,
    clip_low: float = 3e-4,
    clip_high: float = 4e-4,
    log_ratio_clamp: float = 20.0,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Computes the clipped loss on the length-normalised ratio (GSPO, arXiv 2507.18071, eq. 5-7).

    `-min(s A, clip(s, 1 - clip_low, 1 + clip_high) A)` with `s = exp(mean_t(logp - old_logp))`. The
    paper averages over rollouts: `token_weights.sequence_mean`.

    Arguments and results are those of `grpo.policy_loss`, but for its dual clip; the mean log-ratio
    is clamped, and all tokens of a rollout have one loss.
    """
    log_ratio_BNT = jnp.where(mask_BNT, logp_BNT - jax.lax.stop_gradient(old_logp_BNT), 0.0)
    length_BN = jnp.maximum(jnp.sum(mask_BNT, axis=-1), 1)
    log_ratio_BN = jnp.sum(log_ratio_BNT, axis=-1) / length_BN
    log_ratio_BN = jnp.clip(log_ratio_BN, -log_ratio_clamp, log_ratio_clamp)
    ratio_BN = jnp.exp(log_ratio_BN)
    advantage_BN = jax.lax.stop_gradient(advantage_BN)
    plain_BN = -advantage_BN * ratio_BN
    clipped_BN = -advantage_BN * jnp.clip(ratio_BN, 1.0 - clip_low, 1.0 + clip_high)
    metrics = {
        "clip_frac": clipped_BN > plain_BN,
        "ratio": ratio_BN,
        "approx_kl": -log_ratio_BN,
    }

    def of_tokens(value_BN):
        return jnp.broadcast_to(value_BN[..., None], mask_BNT.shape)

    return of_tokens(jnp.maximum(plain_BN, clipped_BN)), jax.tree.map(of_tokens, metrics)
