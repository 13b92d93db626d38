"""Samples from a vocabulary that four devices hold in parts; fails if much of it is gathered."""

import re

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from speciarl_jax.rollout import sampling
from speciarl_jax.runtime import sharding

IMAGES, ANSWERS, VOCABULARY = 3, 2, 16_640


def main() -> None:
    mesh = sharding.make_mesh(data=1, fsdp=1, tensor=4)
    rng = np.random.default_rng(0)
    logits_BNV = rng.normal(0, 3, (IMAGES, ANSWERS, VOCABULARY)).astype(np.float32)
    banned_V = rng.random(VOCABULARY) < 0.1
    keys_BN = sampling.rollout_keys(jax.random.key(1), jnp.arange(IMAGES), ANSWERS)

    @jax.jit
    def draw(logits_BNV, position):
        # top_p is fixed: a nucleus is sorted, for which a vocabulary is gathered.
        return sampling.sample(
            logits_BNV, keys_BN, position, banned_V, temperature=jnp.float32(1.0), top_p=1.0
        )

    cut = jax.device_put(logits_BNV, NamedSharding(mesh, PartitionSpec(None, None, "tensor")))
    for position in range(20):
        want, want_logp = draw(logits_BNV, position)
        got, logp = draw(cut, position)
        np.testing.assert_array_equal(got, want)
        np.testing.assert_allclose(logp, want_logp, rtol=1e-5)
    text = draw.lower(cut, 0).compile().as_text()
    gathered = [
        int(np.prod([int(n) for n in shape.split(",")]))
        for shape in re.findall(r"= \w+\[([\d,]+)\]\S* all-gather", text)
    ]
    print("numbers in an all-gather:", gathered)
    assert gathered and max(gathered) < IMAGES * ANSWERS * VOCABULARY / 4, gathered


if __name__ == "__main__":
    main()
