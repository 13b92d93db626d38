"""Attention of one token an answer reads no more of the cache than there is."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from speciarl_jax.models.decoder import attention

IMAGES, ANSWERS, GROUPS, HEADS, SIZE, PROMPT, LENGTH, LAYERS = 2, 3, 2, 4, 8, 5, 100, 3


def test_columns_to_read_are_halves_of_the_longest_answer():
    assert attention.columns_to_read(2048) == [32, 64, 128, 256, 512, 1024, 2048]
    assert attention.columns_to_read(100) == [50, 100]
    assert attention.columns_to_read(63) == [63]
    assert attention.columns_to_read(1) == [1]


@pytest.mark.parametrize("stacked", [False, True])
@pytest.mark.parametrize("step", [0, 48, 49, 50, 99])
def test_decoding_sees_the_prompt_and_its_own_tokens_and_nothing_after(step, stacked):
    rng = np.random.default_rng(step)

    def random(*shape):
        return jnp.asarray(rng.normal(size=shape), jnp.float32)

    q = random(IMAGES, ANSWERS, HEADS, SIZE)
    prefix_k = random(IMAGES, GROUPS, SIZE, PROMPT)
    prefix_v = random(IMAGES, GROUPS, PROMPT, SIZE)
    mask = jnp.arange(PROMPT) >= jnp.array([[0], [2]])
    # What lies after the step must not matter, however large.
    after = jnp.where(jnp.arange(LENGTH) > step, 1e6, 0.0)
    all_k = random(LAYERS, IMAGES, ANSWERS, GROUPS, SIZE, LENGTH) + after
    all_v = random(LAYERS, IMAGES, ANSWERS, GROUPS, LENGTH, SIZE) + after[:, None]
    own_k, own_v = all_k[1], all_v[1]
    given = (all_k, all_v) if stacked else (own_k, own_v)
    layer = jnp.int32(1) if stacked else None
    decode = jax.jit(attention.decode)
    got = decode(q, prefix_k, prefix_v, mask, *given, jnp.int32(step), layer=layer)

    repeated = HEADS // GROUPS
    for b in range(IMAGES):
        for n in range(ANSWERS):
            for h in range(HEADS):
                g = h // repeated
                keys = np.concatenate([prefix_k[b, g].T[mask[b]], own_k[b, n, g, :, : step + 1].T])
                values = np.concatenate([prefix_v[b, g][mask[b]], own_v[b, n, g, : step + 1]])
                score = keys @ np.asarray(q[b, n, h]) / np.sqrt(SIZE)
                weight = np.exp(score - score.max())
                want = weight @ values / weight.sum()
                np.testing.assert_allclose(got[b, n, h], want, rtol=1e-4, atol=1e-5)
