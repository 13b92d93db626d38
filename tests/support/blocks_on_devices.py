"""Compares attention in blocks on a mesh of four devices with that of one; fails if they differ."""

import jax
import jax.numpy as jnp
import numpy as np

from speciarl_jax.models.decoder import blocked
from speciarl_jax.runtime import activation_sharding, sharding

BATCH, PROMPT, ANSWERS, LENGTH, HEADS, GROUPS, SIZE = 2, 13, 3, 9, 4, 2, 8


def main() -> None:
    blocked._ROWS = 6
    mesh = sharding.make_mesh(data=2, fsdp=1, tensor=2)
    mask_BP = jnp.arange(PROMPT) >= jnp.array([[0], [5]])
    rng = np.random.default_rng(0)
    for attend_by, extra in (
        (blocked.causal, (mask_BP,)),
        (blocked.shared, (mask_BP, ANSWERS)),
        (blocked.full, (mask_BP + jnp.array([[1], [2]]),)),
    ):
        rows = PROMPT + ANSWERS * LENGTH if attend_by is blocked.shared else PROMPT
        shapes = ((BATCH, rows, count, SIZE) for count in (HEADS, GROUPS, GROUPS))
        arrays = [jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in shapes]

        def attend(*arrays, attend_by=attend_by, extra=extra):
            return attend_by(*arrays, *extra, "blocked")

        want = jax.jit(attend)(*arrays)
        got = jax.jit(activation_sharding.on_mesh(mesh, attend))(*arrays)
        np.testing.assert_array_equal(got, want, err_msg=attend_by.__name__)


if __name__ == "__main__":
    main()
