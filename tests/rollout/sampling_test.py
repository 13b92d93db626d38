"""Drawing tokens by weight, in the places where rounding could draw one without weight."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sampling_on_devices
from quick_compiler import QUICK

from speciarl_jax.rollout import sampling

LAST = np.float32(1) - np.float32(2**-23)  # the largest number that `jax.random.uniform` draws
choose = jax.jit(sampling.choose, compiler_options=QUICK)


def assert_chosen_have_weight(weight, chosen):
    chosen = np.asarray(chosen)
    assert (chosen >= 0).all() and (chosen < weight.shape[-1]).all()
    assert (np.take_along_axis(weight, chosen[..., None], axis=-1) > 0).all()


def test_choose_draws_by_weight_and_never_what_has_none():
    weight = np.array([0, 3, 0, 1, 0.5, 0, 0, 0.25, 2, 0, 0.25], np.float32)
    draws = 20_000
    uniform = jax.random.uniform(jax.random.key(0), (draws, 2))
    chosen = choose(jnp.tile(weight, (draws, 1)), uniform)
    counts = np.bincount(chosen, minlength=len(weight))
    assert len(counts) == len(weight) and (counts[weight == 0] == 0).all()
    expected = (draws * weight / weight.sum())[weight > 0]
    # Chi-squared of 5 degrees of freedom exceeds 20.5 once in a thousand.
    assert np.sum((counts[weight > 0] - expected) ** 2 / expected) < 20.5


def test_choose_holds_at_the_ends_of_the_unit_interval():
    last = np.float32(1) - np.finfo(np.float32).eps
    corners = jnp.array([[0, 0], [0, last], [last, 0], [last, last]], jnp.float32)
    weight = np.zeros((4, 17), np.float32)
    weight[:, [4, 7, 15]] = 1e-20, 1.0, 0.5
    chosen = np.asarray(choose(jnp.asarray(weight), corners))
    assert (weight[0, chosen] > 0).all() and chosen[0] == 4 and chosen[3] == 15


def test_choose_is_not_misled_by_sums_that_rise_where_there_is_no_weight():
    """At a size of real vocabularies, a sum of 384 blocks rises and falls at empty blocks."""
    vocabulary, rows = 152_064, 48
    blocks, size = sampling.blocks_of(vocabulary)
    rng = np.random.default_rng(0)
    block = rng.random((rows, blocks), dtype=np.float32)
    block[np.arange(blocks) >= rng.integers(1, blocks, (rows, 1))] = 0
    cumulative = jax.jit(jnp.cumsum, static_argnums=1, compiler_options=QUICK)(block, 1)
    rises = np.diff(np.asarray(cumulative), axis=1) > 0
    # Otherwise this tests nothing.
    assert np.any(rises & (block[:, 1:] == 0))
    across = np.zeros((rows, blocks, size), np.float32)
    across[..., 0] = block
    inside = np.zeros((rows, blocks, size), np.float32)
    inside[:, 3, :blocks] = block
    uniform = np.full((rows, 2), LAST)
    for weight in (across, inside):
        weight = weight.reshape(rows, vocabulary)
        assert_chosen_have_weight(weight, choose(weight, uniform))


@pytest.mark.parametrize(
    "vocabulary", [1, 2, 17, 400, 768, 3001, 16_384, 151_643, 151_936, 152_064]
)
def test_blocks_hold_a_vocabulary_and_a_large_one_is_cut_evenly(vocabulary):
    blocks, size = sampling.blocks_of(vocabulary)
    assert vocabulary <= blocks * size < vocabulary + size
    even = vocabulary % 16 == 0 and vocabulary >= 2**14
    assert not even or (blocks * size == vocabulary and blocks % 16 == 0)
    # A draw reads the sums of all blocks, and one block.
    assert blocks + size <= (4 if even else 3) * vocabulary**0.5


@pytest.mark.parametrize("vocabulary", [1, 2, 17, 400, 3001, 16_400])
def test_choose_never_takes_what_has_no_weight(vocabulary):
    rng = np.random.default_rng(vocabulary)
    rows = 2000
    weight = np.exp(rng.normal(0, 3, (rows, vocabulary))).astype(np.float32)
    # A few tokens as in a nucleus, or many, and often none at the end.
    weight *= rng.random(weight.shape) < rng.choice([0.01, 0.5, 1.0], (rows, 1))
    weight *= np.arange(vocabulary) < rng.integers(1, vocabulary + 1, (rows, 1))
    weight[np.arange(rows), rng.integers(0, vocabulary, rows)] += 1e-6
    uniform = rng.choice(np.array([0, 0.5, LAST], np.float32), (rows, 2))
    for numbers in (uniform, rng.random((rows, 2), dtype=np.float32)):
        assert_chosen_have_weight(weight, choose(weight, numbers))


def test_a_large_vocabulary_that_devices_hold_in_parts_is_not_gathered(start):
    process = start(sampling_on_devices.__file__, devices=4, quick=True)
    said, _ = process.communicate(timeout=300)
    assert process.returncode == 0, said
