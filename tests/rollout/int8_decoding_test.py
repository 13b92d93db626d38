"""Decoding with weights, keys and values in int8: what it computes, and how far it is off."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import qwix
import small_run
from flax import nnx
from quick_compiler import QUICK

from speciarl_jax.models import int8
from speciarl_jax.models.decoder import attention
from speciarl_jax.models.decoder import cache as cache_lib
from speciarl_jax.models.decoder.decoder_weights import LINEARS
from speciarl_jax.rollout import kv_cache_budget
from speciarl_jax.training import state as state_lib
from speciarl_jax.training import steps

KEYS, VALUES = -2, -1  # the axis of a head's size
IMAGES, ANSWERS, GROUPS, HEADS, SIZE, PROMPT, LENGTH, LAYERS = 2, 3, 2, 4, 8, 5, 70, 3


def random(rng, *shape):
    return jnp.asarray(rng.normal(size=shape), jnp.float32)


@pytest.mark.parametrize("layer", [None, 1])
@pytest.mark.parametrize("step", [0, 40, 69])
def test_attention_is_that_of_the_rounded_keys_and_values(step, layer):
    rng = np.random.default_rng(step)
    lead = () if layer is None else (LAYERS,)
    q, mask = random(rng, IMAGES, ANSWERS, HEADS, SIZE), jnp.arange(PROMPT) >= jnp.array([[0], [2]])
    prefix_k = int8.quantize(random(rng, IMAGES, GROUPS, SIZE, PROMPT), KEYS)
    prefix_v = int8.quantize(random(rng, IMAGES, GROUPS, PROMPT, SIZE), VALUES)
    suffix_k = int8.quantize(random(rng, *lead, IMAGES, ANSWERS, GROUPS, SIZE, LENGTH), KEYS)
    suffix_v = int8.quantize(random(rng, *lead, IMAGES, ANSWERS, GROUPS, LENGTH, SIZE), VALUES)

    def attend(of):
        prefix, suffix = (of(prefix_k), of(prefix_v)), (of(suffix_k), of(suffix_v))
        return attention.decode(q, *prefix, mask, *suffix, jnp.int32(step), layer=layer)

    np.testing.assert_allclose(attend(lambda x: x), attend(qwix.dequantize), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", cache_lib.KINDS)
@pytest.mark.parametrize("layer", [None, 2])
def test_a_token_is_written_into_its_column_and_nowhere_else(layer, kind):
    rng = np.random.default_rng(0)
    empty = cache_lib.SuffixCache.empty(
        0 if layer is None else LAYERS,
        (IMAGES, ANSWERS, GROUPS),
        LENGTH,
        SIZE,
        dtype=jnp.float32,
        kind=kind,
    )
    k, v = (random(rng, IMAGES, ANSWERS, GROUPS, SIZE) for _ in "kv")
    got = cache_lib.write(empty.k_LBNGKT, empty.v_LBNGTK, k, v, jnp.int32(7), layer)
    given = (empty.k_LBNGKT, empty.v_LBNGTK)
    assert jax.tree.structure(got) == jax.tree.structure(given)
    for cache, new, axis in zip(got, (k, v), (-1, -2), strict=True):
        if kind == "int8":
            assert cache.qvalue.dtype == jnp.int8
            cache, new = qwix.dequantize(cache), qwix.dequantize(int8.quantize(new, -1))
        own = cache if layer is None else cache[layer]
        np.testing.assert_allclose(np.take(np.asarray(own), 7, axis), new, rtol=1e-6)
        assert np.count_nonzero(cache) == np.count_nonzero(new) > 0


@pytest.mark.parametrize("unrolled", [False, True])
@pytest.mark.parametrize("merge_lora", [False, True])
def test_kernels_to_decode_with_are_the_rounded_ones(run, merge_lora, unrolled):
    rng = np.random.default_rng(0)
    lora = jax.tree.map(lambda x: jnp.asarray(rng.normal(0, 0.2, x.shape), x.dtype), run.lora)
    decoder = nnx.merge(run.graphdef, lora, run.base).decoder
    decoder.scan_unroll = decoder.config.num_layers if unrolled else 1
    make = functools.partial(decoder.decode_weights, use_lora=True, merge_lora=merge_lora)
    want, got = make(), make(kind="int8")
    if merge_lora and unrolled:  # a tuple of layers
        want, got = want[1], got[1]
    (want, adapters), (got, beside) = want, got
    assert adapters.keys() == beside.keys() and bool(adapters) != merge_lora
    for name, kernel in want.items():
        if name in LINEARS:
            wanted = int8.quantize(kernel)
            np.testing.assert_array_equal(got[name].qvalue, wanted.qvalue)
            np.testing.assert_allclose(got[name].scale, wanted.scale, rtol=1e-6)
        else:
            np.testing.assert_array_equal(got[name], kernel)


def test_the_budget_counts_a_scale_for_each_token_and_head(run):
    text = run.model_config.text
    entries = 2 * text.num_layers * text.num_kv_heads
    assert kv_cache_budget.token_bytes(text, "bfloat16", "int8") == entries * (text.head_dim + 4)
    empty = cache_lib.SuffixCache.empty(
        text.num_layers,
        (1, 1, text.num_kv_heads),
        LENGTH,
        text.head_dim,
        dtype=jnp.bfloat16,
        kind="int8",
    )
    held = sum(x.nbytes for x in jax.tree.leaves(empty))
    assert held == LENGTH * kv_cache_budget.token_bytes(text, "bfloat16", "int8")
    # Twice as many images fit, but for the scales.
    token = kv_cache_budget.token_bytes(text, "float32")
    limits = {"rollout__cache_bytes": 4 * 40 * token, "data__max_prompt_tokens": 8}
    config = small_run.small_config(run.config.model.path, **limits)
    other = dataclasses.replace(run, config=config)
    parts = [other.chunks(4, 8, kv_cache=kind)(8, 8) for kind in cache_lib.KINDS]
    assert parts == [2, 1]


@functools.cache
def sampler(folder, training, **changes):
    run = small_run.small_run(folder, **{f"rollout__{key}": x for key, x in changes.items()})
    return run, jax.jit(run.sampler(4, 8, training=training), compiler_options=QUICK)


def sampled(folder, temperature, *, training=True, **changes):
    run, sample = sampler(folder, training, **changes)
    rng = np.random.default_rng(0)
    lora = jax.tree.map(lambda x: jnp.asarray(rng.normal(0, 0.2, x.shape), x.dtype), run.lora)
    batch = small_run.batch_of(run)
    _, rollout = sample(
        lora, run.base, batch, jax.random.key(3), np.float32(temperature), np.float32(1)
    )
    return jax.device_get(rollout)


INT8 = {"decode_weights": "int8", "kv_cache": "int8"}


def test_evaluation_and_prediction_round_nothing(policy_folder):
    want = sampled(policy_folder, 1)
    got = sampled(policy_folder, 1, training=False, **INT8)
    jax.tree.map(np.testing.assert_array_equal, got, want)


@pytest.mark.parametrize(
    "changes",
    [
        {"kv_cache": "int8"},
        {"decode_weights": "int8"},
        pytest.param({**INT8, "merge_lora": False}, marks=pytest.mark.slow),
        pytest.param({"kv_cache": "int8", "num_compactions": 0}, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_what_is_sampled_is_nearly_the_same(policy_folder, changes):
    """Until a token differs, log-probabilities are close, and not the same."""
    want, got = sampled(policy_folder, 1), sampled(policy_folder, 1, **changes)
    same = np.cumprod(want.tokens_BNT == got.tokens_BNT, axis=-1).astype(bool)
    both = same & want.mask_BNT & got.mask_BNT
    assert both.sum() > 0.6 * want.mask_BNT.sum()
    gap = np.abs(want.logp_BNT - got.logp_BNT)
    # The first token comes from the prefill, which rounds nothing.
    np.testing.assert_array_equal(gap[..., 0][both[..., 0]], 0)
    later = gap[..., 1:][both[..., 1:]]
    assert 1e-4 < np.sqrt(np.mean(later**2)) < 0.1


def test_compaction_moves_scales_with_their_values(policy_folder):
    few, many = (sampled(policy_folder, 1, num_compactions=n, **INT8) for n in (0, 3))
    assert len(set(few.mask_BNT.sum(axis=-1).ravel())) > 3
    np.testing.assert_array_equal(few.tokens_BNT, many.tokens_BNT)
    # Another program may round a key in the middle between two steps to the other one.
    np.testing.assert_allclose(few.logp_BNT, many.logp_BNT, rtol=0, atol=0.01)


@pytest.mark.slow
def test_a_step_says_how_far_sampling_is_from_learning(policy_folder):
    found = {}
    for name, changes in {"float": {}, "int8": INT8}.items():
        changes = {f"rollout__{key}": value for key, value in changes.items()}
        run = small_run.small_run(policy_folder, train__fused=False, **changes)
        optimizer, state, state_sharding = state_lib.start(run)
        step = steps.programs(run, optimizer, state_sharding)
        batch = small_run.batch_of(run)
        features, rollout = step["rollout"](state.lora, run.base, batch, steps.key_of(run, 7))
        category, valid, *_ = step["verify"](run.verifier, batch, rollout)
        groups = steps.Groups(batch, features, rollout, category, valid)
        _, metrics = step["update"](state, run.base, groups)
        found[name] = float(metrics["update/sampler_kl"])
    assert abs(found["float"]) < 1e-6 < 1e-5 < found["int8"] < 0.05, found


@pytest.mark.parametrize("key", ["decode_weights", "kv_cache"])
def test_an_unknown_kind_is_refused_before_anything_is_read(policy_folder, key):
    with pytest.raises(ValueError, match=f"config.rollout.{key} is 'int4'; choose one of .*'int8'"):
        small_run.small_run(policy_folder, **{f"rollout__{key}": "int4"})
