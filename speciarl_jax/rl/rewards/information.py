"""Credit by information: what a completion says beyond the base rate of the training set.

The best-prediction reward pays a generic answer in full wherever nothing better was sampled. If one
word is right for every training image ("animal" among animals), it is learned as a constant that
says nothing of the image, and that answers every other kind of thing as well.
"""

import jax
import jax.numpy as jnp

KINDS = ("share", "bits")


def credit(
    base_rate_BN: jax.Array, *, strength: float, kind: str = "share", entropy: float = 1.0
) -> jax.Array:
    """Computes the factor of a positive reward, float32 [B, N] in [1 - strength, 1].

    `1 - strength (1 - information)`, where the information of an answer with base rate p is
      - "share": 1 - p, the share of the training images that the answer rules out;
      - "bits": -log p / entropy, at most 1: of what the right label tells on average, the part that
        the answer tells.
    An answer that holds for every training image has none; one that holds for none of them has all.

    Args:
      base_rate_BN: float32, the share of the training images for which the answer would be right.
      strength: 0 for full credit everywhere, 1 for no credit without information.
      kind: one of `KINDS`.
      entropy: of the labels of training, nats; only "bits" reads it.

    Raises:
      ValueError: an unknown kind, or a strength outside of [0, 1].
    """
    if kind not in KINDS:
        raise ValueError(f"config.reward.information.kind is {kind!r}; choose one of {KINDS}")
    if not 0 <= strength <= 1:
        raise ValueError(
            f"config.reward.information.strength is {strength}; choose a number from 0 (full "
            "credit everywhere) to 1 (none for what holds for every training image)"
        )
    if kind == "share":
        lacking_BN = jnp.clip(base_rate_BN, 0.0, 1.0)
    else:
        # Below this rate an answer tells more than any label does.
        rate_BN = jnp.clip(base_rate_BN, jnp.exp(-jnp.float32(entropy)), 1.0)
        lacking_BN = 1.0 + jnp.log(rate_BN) / max(entropy, 1e-6)
    return (1.0 - strength * lacking_BN).astype(jnp.float32)
