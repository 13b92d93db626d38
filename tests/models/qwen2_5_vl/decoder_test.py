"""The decoder's choices of memory: the same gradients, and less of it in use."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from speciarl_jax.models.qwen2_5_vl import decoder as decoder_lib
from speciarl_jax.models.qwen2_5_vl.config import TextConfig

CONFIG = TextConfig(
    vocab_size=64,
    hidden_size=32,
    intermediate_size=96,
    num_layers=6,
    num_heads=4,
    num_kv_heads=2,
    mrope_section=(2, 1, 1),
)
IMAGES, PROMPT, ANSWERS, LENGTH = 2, 12, 3, 16


@functools.cache
def make_decoder():
    """A decoder whose adapters do something."""
    decoder = decoder_lib.Decoder(
        CONFIG,
        dtype=jnp.float32,
        param_dtype=jnp.float32,
        lora_rank=4,
        lora_alpha=8.0,
        scan_unroll=1,
        rngs=nnx.Rngs(0),
    )
    rng = np.random.default_rng(0)
    for path, variable in nnx.to_flat_state(nnx.state(decoder)):
        if variable.ndim > 1 and "norm" not in path[-1]:
            noise = rng.normal(0, 0.2, variable.shape)
            variable.set_value(jnp.asarray(noise, variable.dtype))
    return decoder


@functools.cache
def gradient(remat):
    """Compiled gradient of the adapters of a made-up loss over a shared row."""
    graphdef, lora, base = nnx.split(make_decoder(), nnx.LoRAParam, ...)
    rng = np.random.default_rng(1)
    tokens_BNT = jnp.asarray(rng.integers(0, 64, (IMAGES, ANSWERS, LENGTH)), jnp.int32)
    x_BPD = jnp.asarray(rng.normal(size=(IMAGES, PROMPT, CONFIG.hidden_size)), jnp.float32)
    mask_BP = jnp.arange(PROMPT) >= jnp.array([[0], [4]])
    positions_3BP = jnp.broadcast_to(jnp.arange(PROMPT), (3, IMAGES, PROMPT))
    position_BT = jnp.broadcast_to(PROMPT + jnp.arange(LENGTH), (IMAGES, LENGTH))

    def loss(lora, base):
        decoder = nnx.merge(graphdef, lora, base)
        _, hidden = decoder.forward_shared(
            x_BPD, positions_3BP, mask_BP, tokens_BNT, position_BT, use_lora=True, remat=remat
        )
        return jnp.sum(jnp.sin(decoder.logits(hidden)))

    compiled = jax.jit(jax.grad(loss)).lower(lora, base).compile()
    return compiled, compiled(lora, base)


def temporary_bytes(remat):
    return gradient(remat)[0].memory_analysis().temp_size_in_bytes


@pytest.mark.parametrize("remat", ["full", "dots"])
def test_gradients_do_not_depend_on_what_is_computed_again(remat):
    want, got = gradient("none")[1], gradient(remat)[1]
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        assert np.abs(b).max() > 1e-3
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * np.abs(b).max())


def test_the_more_is_computed_again_the_less_memory_is_in_use():
    full, dots, none = map(temporary_bytes, ("full", "dots", "none"))
    assert full < 0.6 * dots and dots < 0.8 * none, (full, dots, none)


def test_an_unknown_choice_is_refused():
    with pytest.raises(ValueError, match="config.train.remat is True.*'none', 'full', 'dots'"):
        decoder_lib.remat_policy(True)
