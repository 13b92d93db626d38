"""The loss of SAPO: a smooth gate on the ratio of each token in place of a clip."""

import jax
import jax.numpy as jnp

from speciarl_jax.rl.losses import ratio


def policy_loss(
    logp_BNT: jax.Array,
    old_logp_BNT: jax.Array,
    advantage_BN: jax.Array,
    mask_BNT: jax.Array,
    *,
    temperature_positive: float = 1.0,
    temperature_negative: float = 1.05,
    log_ratio_clamp: float = 20.0,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Computes the gated loss of each token (SAPO, arXiv 2511.20347, section 3).

    `-A (4 / tau) sigmoid(tau (rho - 1))`, where `tau` is one of two temperatures, by the sign of
    the advantage. The gradient is that of `-A rho` times `4 sigmoid (1 - sigmoid)`, which is 1 at
    `rho = 1` and falls on both sides. The paper averages over rollouts:
    `token_weights.sequence_mean`.

    Args:
      logp_BNT: float32 log-probabilities of the sampled tokens under the policy, differentiable.
      old_logp_BNT: float32, the same under the policy before the update.
      advantage_BN: float32, one advantage for a whole rollout.
      mask_BNT: bool, the tokens that take part; elsewhere log-probabilities are arbitrary.
      temperature_positive: of tokens with an advantage above 0; a higher one narrows the gate.
      temperature_negative: of the other tokens.
      log_ratio_clamp: the log-ratio is clamped to +-this before it is exponentiated.

    Returns:
      The loss of each token, float32 [B, N, T], and metrics of the same shape: `ratio`, `approx_kl`
      as for `grpo.policy_loss`, and `gate`, the factor on the gradient, in (0, 1].

    Raises:
      ValueError: a temperature is not above 0.
    """
    for name, value in (("positive", temperature_positive), ("negative", temperature_negative)):
        if not value > 0:
            raise ValueError(
                f"config.loss.options.temperature_{name} is {value}; set it above 0, for instance "
                "to 1"
            )
    log_ratio_BNT = ratio.log_ratio(logp_BNT, old_logp_BNT, mask_BNT, clamp=log_ratio_clamp)
    ratio_BNT = jnp.exp(log_ratio_BNT)
    advantage_BN1 = jax.lax.stop_gradient(advantage_BN)[..., None]
    tau_BN1 = jnp.where(advantage_BN1 > 0, temperature_positive, temperature_negative)
    share_BNT = jax.nn.sigmoid(tau_BN1 * (ratio_BNT - 1.0))
    metrics = {
        "gate": 4.0 * share_BNT * (1.0 - share_BNT),
        "ratio": ratio_BNT,
        "approx_kl": -log_ratio_BNT,
    }
    return -advantage_BN1 * share_BNT * (4.0 / tau_BN1), metrics
