"""The Pallas kernel, interpreted, beside attention by XLA: sequences, shared rows, pictures."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from speciarl_jax.models.qwen2_5_vl import attention, splash

IMAGES, PROMPT, ANSWERS, LENGTH, HEADS, GROUPS, SIZE = 2, 13, 3, 9, 4, 2, 8
KIND = "splash_interpret"
MASK_BP = np.arange(PROMPT) >= np.array([[0], [5]])


def heads(length, count, seed):
    rng = np.random.default_rng(seed)
    return jnp.asarray(rng.normal(size=(IMAGES, length, count, SIZE)), jnp.float32)


def qkv(length):
    return heads(length, HEADS, 0), heads(length, GROUPS, 1), heads(length, GROUPS, 2)


def assert_equal(want, got, valid_BS, *arrays):
    """Compares two functions of q, k, v, and their gradients, where there is no padding."""
    weight = jnp.asarray(valid_BS)[..., None, None] * jnp.cos(arrays[0])

    def total(function, *arrays):
        out = function(*arrays)
        return jnp.sum(jnp.where(weight != 0, out * weight, 0.0)), out

    def run(function):
        gradient = jax.value_and_grad(functools.partial(total, function), (0, 1, 2), has_aux=True)
        return jax.jit(gradient)(*arrays)

    ((_, want), want_grads), ((_, got), grads) = run(want), run(got)
    np.testing.assert_allclose(got[valid_BS], want[valid_BS], atol=2e-5)
    for mine, theirs in zip(grads, want_grads, strict=True):
        np.testing.assert_allclose(mine, theirs, atol=5e-5)
        assert float(jnp.abs(theirs).max()) > 0.01


def test_a_causal_sequence_with_padding():
    assert_equal(
        lambda *x: attention.causal(*x, jnp.asarray(MASK_BP)),
        lambda *x: splash.causal(*x, jnp.asarray(MASK_BP), KIND),
        MASK_BP,
        *qkv(PROMPT),
    )


def test_answers_that_share_a_prompt():
    def want(q, k, v):
        def split(x):
            return x[:, :PROMPT], x[:, PROMPT:].reshape(IMAGES, ANSWERS, LENGTH, -1, SIZE)

        (q0, q1), (k0, k1), (v0, v1) = split(q), split(k), split(v)
        mask = jnp.asarray(MASK_BP)
        order = jnp.tril(jnp.ones((LENGTH, LENGTH), bool))
        own = attention.shared_prefix(q1, k0, v0, mask, k1, v1, order)
        own = own.reshape(IMAGES, ANSWERS * LENGTH, HEADS, SIZE)
        return jnp.concatenate([attention.causal(q0, k0, v0, mask), own], axis=1)

    valid = np.concatenate([MASK_BP, np.ones((IMAGES, ANSWERS * LENGTH), bool)], axis=1)
    assert_equal(
        want,
        lambda *x: splash.shared(*x, jnp.asarray(MASK_BP), ANSWERS, KIND),
        valid,
        *qkv(PROMPT + ANSWERS * LENGTH),
    )


def test_pictures_of_a_row_do_not_see_each_other():
    segment = np.array([[1] * 4 + [2] * 6 + [0] * 2, [1] * 12])
    q, k, v = heads(12, HEADS, 0), heads(12, HEADS, 1), heads(12, HEADS, 2)
    same = jnp.asarray(segment[:, None, :, None] == segment[:, None, None, :])
    assert_equal(
        lambda *x: jax.nn.dot_product_attention(*x, mask=same),
        lambda *x: splash.full(*x, jnp.asarray(segment), KIND),
        segment > 0,
        q,
        k,
        v,
    )


@pytest.mark.parametrize("prompt, answers, length", [(4, 3, 2), (3, 1, 5), (1, 4, 1)])
def test_the_mask_of_shared_rows(prompt, answers, length):
    mask = splash.SharedPrefixMask(prompt, answers, length)
    size = prompt + answers * length
    got = mask[slice(0, size), slice(0, size)]
    owner = [-1] * prompt + [n for n in range(answers) for _ in range(length)]
    for i in range(size):
        for j in range(size):
            assert got[i, j] == (j <= i and (owner[j] == -1 or owner[i] == owner[j])), (i, j)
    np.testing.assert_array_equal(mask[slice(1, 3), slice(0, 2)], got[1:3, 0:2])
