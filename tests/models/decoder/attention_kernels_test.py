"""Kernels that keep no scores beside attention by XLA: sequences, shared rows, images.

The Pallas kernel is interpreted, and cuDNN's calls are computed by XLA and lowered for CUDA. Blocks
are of few tokens here, so that there are several, and the last is not full.
"""

import functools

import blocks_on_devices
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from speciarl_jax.models.decoder import attention, attention_kernels, blocked, cudnn, splash

IMAGES, PROMPT, ANSWERS, LENGTH, HEADS, GROUPS, SIZE = 2, 13, 3, 9, 4, 2, 8
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


all_kernels = pytest.mark.parametrize("kind", ["blocked", "splash_interpret", "cudnn_by_xla"])


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(blocked, "_ROWS", 6)


@all_kernels
def test_a_causal_sequence_with_padding(kind):
    assert_equal(
        lambda *x: attention.causal(*x, jnp.asarray(MASK_BP)),
        lambda *x: attention_kernels.KINDS[kind].causal(*x, jnp.asarray(MASK_BP), kind),
        MASK_BP,
        *qkv(PROMPT),
    )


@all_kernels
def test_answers_that_share_a_prompt(kind):
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
        lambda *x: attention_kernels.KINDS[kind].shared(*x, jnp.asarray(MASK_BP), ANSWERS, kind),
        valid,
        *qkv(PROMPT + ANSWERS * LENGTH),
    )


@all_kernels
def test_images_of_a_row_do_not_see_each_other(kind):
    segment = np.array([[1] * 4 + [2] * 6 + [0] * 2, [1] * 12])
    q, k, v = heads(12, HEADS, 0), heads(12, HEADS, 1), heads(12, HEADS, 2)
    same = jnp.asarray(segment[:, None, :, None] == segment[:, None, None, :])
    assert_equal(
        lambda *x: jax.nn.dot_product_attention(*x, mask=same),
        lambda *x: attention_kernels.KINDS[kind].full(*x, jnp.asarray(segment), kind),
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


# Of Qwen2.5-VL 7B: the decoder's 28 heads, 4 for keys, of 128; the encoder's 16 of 80. Odd lengths.
@pytest.mark.parametrize(
    "function, length, heads_of_keys, size",
    [
        (lambda *x: cudnn.causal(*x, jnp.ones((2, 301), bool), "cudnn"), 301, (28, 4), 128),
        (lambda *x: cudnn.shared(*x, jnp.ones((2, 301), bool), 10, "cudnn"), 1261, (28, 4), 128),
        (lambda *x: cudnn.full(*x, jnp.ones((2, 399), int), "cudnn"), 399, (16, 16), 80),
    ],
    ids=["causal", "shared", "full"],
)
def test_cudnn_takes_the_published_dimensions(monkeypatch, function, length, heads_of_keys, size):
    from jax._src.cudnn import fused_attention_stablehlo as checks

    monkeypatch.setattr(checks, "check_cudnn_version", lambda: 90800)  # asks the GPU's library

    def total(*arrays):
        return jnp.sum(function(*arrays).astype(jnp.float32))

    count, keys = heads_of_keys
    q, k = (jax.ShapeDtypeStruct((2, length, n, size), jnp.bfloat16) for n in (count, keys))
    lowered = jax.jit(jax.grad(total, (0, 1, 2))).trace(q, k, k)
    text = lowered.lower(lowering_platforms=("cuda",)).as_text()
    assert "__cudnn$fmhaScaleBiasSoftmax(" in text
    assert "__cudnn$fmhaScaleBiasSoftmaxBackward(" in text
    even = length + length % 2
    assert f"tensor<2x1x{even}x{even}x" in text  # the mask
    assert f"{count}x{even}x{even}x" not in text  # scores


def test_no_row_of_blocks_stores_its_scores():
    length = 96
    arrays = qkv(length)
    mask_BS = jnp.ones((IMAGES, length), bool)

    def scores(causal, *extra):
        def total(*x):
            return jnp.sum(causal(*x, mask_BS, *extra) ** 2)

        text = jax.jit(jax.grad(total, (0, 1, 2))).lower(*arrays).as_text()
        return f"x{length}x{length}xf32" in text

    assert scores(attention.causal)
    assert not scores(blocked.causal, "blocked")


def test_only_long_rows_are_worth_blocks():
    assert attention_kernels.of("blocked", blocked.LONG) is blocked
    assert attention_kernels.of("blocked", blocked.LONG - 1) is None
    assert attention_kernels.of("splash", 1) is splash
    assert attention_kernels.of("xla", blocked.LONG) is None


def test_blocks_on_several_devices(start):
    process = start(blocks_on_devices.__file__, devices=4, quick=True)
    said, _ = process.communicate(timeout=300)
    assert process.returncode == 0, said
