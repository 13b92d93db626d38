"""Kernels for attention over whole sequences that keep no array of scores, by name."""

import types

from speciarl_jax.models.decoder import blocked, cudnn, splash

# Name -> the module whose `causal`, `full` and `shared` compute it; "xla" is `attention` itself.
# "splash_interpret" and "cudnn_by_xla" compute the same anywhere, for tests.
KINDS: dict[str, types.ModuleType | None] = {
    "xla": None,
    "blocked": blocked,
    "splash": splash,
    "splash_interpret": splash,
    "cudnn": cudnn,
    "cudnn_by_xla": cudnn,
}


def of(kind: str, length: int) -> types.ModuleType | None:
    """Returns the module for rows of `length` tokens; None where XLA computes them with scores."""
    return None if kind == "blocked" and length < blocked.LONG else KINDS[kind]


def fastest(platform: str) -> str:
    """Returns the key of `KINDS` for a platform of JAX: "cpu", "gpu" or "tpu"."""
    return {"tpu": "splash", "cpu": "blocked"}.get(platform, "xla")
