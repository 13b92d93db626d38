"""Kernels for attention over whole sequences that keep no array of scores, by name."""

import types

from speciarl_jax.models.decoder import cudnn, splash

# Name -> the module whose `causal`, `full` and `shared` compute it; "xla" is `attention` itself.
# "splash_interpret" and "cudnn_by_xla" compute the same anywhere, for tests.
KINDS: dict[str, types.ModuleType | None] = {
    "xla": None,
    "splash": splash,
    "splash_interpret": splash,
    "cudnn": cudnn,
    "cudnn_by_xla": cudnn,
}
