"""Ways to compute attention over whole sequences, by name."""

import types

from speciarl_jax.models.decoder import attention, blocked, cudnn, splash

# Name -> the module whose `causal`, `full` and `shared` compute it; the first alone keeps scores in
# memory. "splash_interpret" and "cudnn_by_xla" compute the same anywhere, for tests.
KINDS: dict[str, types.ModuleType] = {
    "xla": attention,
    "blocked": blocked,
    "splash": splash,
    "splash_interpret": splash,
    "cudnn": cudnn,
    "cudnn_by_xla": cudnn,
}


def fastest(platform: str) -> str:
    """Returns the key of `KINDS` for a platform of JAX: "cpu", "gpu" or "tpu"."""
    return {"tpu": "splash", "cpu": "blocked"}.get(platform, "xla")
