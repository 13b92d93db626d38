"""The memory of decoding, and samples in parts that fit into it."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small_run

from speciarl_jax.experiment.run import prepare
from speciarl_jax.models.qwen2_5_vl import presets
from speciarl_jax.rollout import kv_cache_budget
from speciarl_jax.runtime import sharding


def test_the_papers_rollouts_take_what_they_are_known_to_take():
    """2,560 answers of 2,048 tokens about 256 images by the 7B model, prompts shared: 331 GB."""
    token = kv_cache_budget.token_bytes(presets.CONFIGS["7B"].text, "bfloat16")
    assert token == 57_344
    one = kv_cache_budget.image_bytes(
        token, prompt=2048, answers=10, tokens=2048, num_compactions=0
    )
    assert round(256 * one / 1e9) == 331
    narrow = kv_cache_budget.image_bytes(
        token, prompt=2048, answers=10, tokens=2048, num_compactions=2
    )
    assert narrow - one == token * (2048 + 5 * 2048)
    greedy = [
        kv_cache_budget.image_bytes(token, prompt=2048, answers=1, tokens=64, num_compactions=n)
        for n in (0, 1)
    ]
    assert greedy[1] == 1.5 * greedy[0]


SMALL = {"token": 10, "answers": 4, "tokens": 5, "num_compactions": 0}  # an image: 10 * (P + 20)


@pytest.mark.parametrize(
    "images, devices, cache_bytes, max_images_per_chunk, parts",
    [
        (12, 1, 0, 0, 1),
        (12, 1, 12 * 300, 0, 1),
        (12, 1, 12 * 300 - 1, 0, 2),
        (12, 1, 5 * 300, 0, 3),  # at most 5, so 4
        (12, 1, 300, 0, 12),
        (12, 4, 300, 0, 3),  # one a device at a time
        (12, 4, 600, 0, 3),  # two do not divide three
        (12, 1, 0, 5, 3),
        (12, 2, 0, 5, 3),  # two a device
        (12, 1, 300 * 3, 6, 4),  # the tighter one holds
        (4, 4, 0, 100, 1),
    ],
)
def test_the_fewest_equal_parts_that_fit(images, devices, cache_bytes, max_images_per_chunk, parts):
    limits = {"cache_bytes": cache_bytes, "max_images_per_chunk": max_images_per_chunk}
    assert kv_cache_budget.chunks(images, 10, devices=devices, **limits, **SMALL) == parts


def test_a_batch_that_falls_into_many_parts_is_told_which_would_not(caplog):
    limits = {"devices": 2, "cache_bytes": 12 * 300, "max_images_per_chunk": 0}
    with caplog.at_level("WARNING"):
        assert kv_cache_budget.chunks(24, 10, **limits, **SMALL) == 1
        assert kv_cache_budget.chunks(28, 10, **limits, **SMALL) == 2
        assert not caplog.text
        assert kv_cache_budget.chunks(26, 10, **limits, **SMALL) == 13
    assert "26 images are sampled in 13 parts of 2, though 24 fit at once" in caplog.text
    assert "A batch of 24 or 28 images" in caplog.text


def test_a_longer_prompt_makes_smaller_parts():
    limits = {"devices": 1, "cache_bytes": 1200, "max_images_per_chunk": 0}
    assert [kv_cache_budget.chunks(8, prompt, **limits, **SMALL) for prompt in (10, 40, 100)] == [
        2,
        4,
        8,
    ]


def test_a_budget_below_one_image_is_refused_at_the_start(small_config):
    said = (
        r"one image takes ([\d,]+) bytes \([\d,]+ a token; prompt of up to 2048 tokens, 4 answers"
        r" of up to 8\), but config.rollout.cache_bytes is 5,000; raise it"
    )
    with pytest.raises(ValueError, match=said):
        prepare(small_config(rollout__cache_bytes=5000))
    two = {"devices": 2, "cache_bytes": 0, "max_images_per_chunk": 1}
    with pytest.raises(ValueError, match="max_images_per_chunk is 1, .* 2 devices .* at least 2"):
        kv_cache_budget.chunks(8, 10, **two, **SMALL)


@pytest.fixture(scope="module")
def compiled(run, small_config):
    """(max_images_per_chunk, options) -> the answers, and the temporary bytes of the program."""
    batch = small_run.batch_of(run)
    batch = batch.replace(weight_B=batch.weight_B.at[3].set(0))

    @functools.cache
    def sample(max_images_per_chunk, merge_lora):
        config = small_config(
            rollout__max_images_per_chunk=max_images_per_chunk, rollout__merge_lora=merge_lora
        )
        other = dataclasses.replace(run, config=config)
        rng = np.random.default_rng(0)
        lora = jax.tree.map(lambda x: jnp.asarray(rng.normal(0, 0.2, x.shape), x.dtype), run.lora)
        args = lora, run.base, batch, jax.random.key(3), np.float32(1), np.float32(1)
        program = jax.jit(other.sampler(40, 8), out_shardings=sharding.batch_sharding(run.mesh))
        program = program.lower(*args).compile()
        _, rollout = program(*args)
        return jax.device_get(rollout), program.memory_analysis().temp_size_in_bytes

    return sample


@pytest.mark.slow
@pytest.mark.parametrize("merge_lora", [False, True])
def test_samples_in_parts_are_the_same_samples(compiled, merge_lora):
    (want, whole), (got, parts) = compiled(0, merge_lora), compiled(2, merge_lora)
    lengths = want.mask_BNT.sum(axis=-1)
    assert len(set(lengths.ravel())) > 3 and not lengths[3].any()
    np.testing.assert_array_equal(got.tokens_BNT, want.tokens_BNT)
    np.testing.assert_array_equal(got.mask_BNT, want.mask_BNT)
    np.testing.assert_allclose(got.logp_BNT, want.logp_BNT, rtol=1e-5, atol=1e-5)
    # A quarter of the images at a time.
    assert parts < 0.6 * whole
