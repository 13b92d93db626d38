"""The decoder's choices of memory: the same numbers, or nearly, and less of it in use."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import random_modules
from flax import nnx
from quick_compiler import QUICK

from speciarl_jax.models import int8
from speciarl_jax.models.decoder import decoder as decoder_lib
from speciarl_jax.models.decoder import remat as remat_lib
from speciarl_jax.models.decoder.text_config import TextConfig
from speciarl_jax.models.qwen2_5_vl import presets
from speciarl_jax.models.vision_language import VisionLanguageModel

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


def new_decoder(dtype=jnp.float32, **options):
    """A decoder whose adapters do nothing yet."""
    options |= {"dtype": dtype, "param_dtype": dtype, "lora_rank": 4, "lora_alpha": 8.0}
    return random_modules.drawn(lambda: decoder_lib.Decoder(CONFIG, **options, rngs=nnx.Rngs(0)))


@functools.cache
def make_decoder(base_weights="param_dtype"):
    """A decoder whose adapters do something; the same one whatever its weights are kept as."""
    decoder = new_decoder(scan_unroll=1, base_weights=base_weights)
    rng = np.random.default_rng(0)
    for path, variable in nnx.to_flat_state(nnx.state(decoder)):
        if variable.ndim > 1 and "norm" not in path[-1]:
            noise = rng.normal(0, 0.6 / np.sqrt(variable.shape[-2]), variable.shape)
            noise = jnp.asarray(noise, jnp.float32)
            is_int8 = base_weights == "int8" and path[-1] in decoder_lib.LINEARS
            variable.set_value(int8.quantize(noise) if is_int8 else noise)
    return decoder


@functools.cache
def gradient(remat, base_weights="param_dtype"):
    """Compiled gradient of the adapters of a made-up loss over a shared row, and its values."""
    graphdef, lora, base = nnx.split(make_decoder(base_weights), nnx.LoRAParam, ...)
    rng = np.random.default_rng(1)
    tokens_BNT = jnp.asarray(rng.integers(0, 64, (IMAGES, ANSWERS, LENGTH)), jnp.int32)
    x_BPD = jnp.asarray(rng.normal(size=(IMAGES, PROMPT, CONFIG.hidden_size)), jnp.float32)
    mask_BP = jnp.arange(PROMPT) >= jnp.array([[0], [4]])
    positions_3BP = jnp.broadcast_to(jnp.arange(PROMPT), (3, IMAGES, PROMPT))
    position_BT = jnp.broadcast_to(PROMPT + jnp.arange(LENGTH), (IMAGES, LENGTH))

    def loss(lora, base):
        decoder = nnx.merge(graphdef, lora, base)
        [(_, hidden)] = decoder.forward_shared(
            x_BPD,
            positions_3BP,
            mask_BP,
            tokens_BNT,
            position_BT,
            use_lora=True,
            remat=remat,
        )
        logits = decoder.logits(hidden)
        return jnp.mean(jnp.sin(logits)), logits

    compiled = jax.jit(jax.grad(loss, has_aux=True)).lower(lora, base).compile(QUICK)
    return compiled, *compiled(lora, base)


def temporary_bytes(remat, base_weights="param_dtype"):
    return gradient(remat, base_weights)[0].memory_analysis().temp_size_in_bytes


@pytest.mark.parametrize(
    "remat, base_weights", [("full", "param_dtype"), ("dots", "param_dtype"), ("dots", "int8")]
)
def test_gradients_do_not_depend_on_what_is_computed_again(remat, base_weights):
    want, got = gradient("none", base_weights)[1], gradient(remat, base_weights)[1]
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        assert np.abs(b).max() > 1e-4
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * np.abs(b).max())


def test_the_more_is_computed_again_the_less_memory_is_in_use():
    full, dots, none = map(temporary_bytes, ("full", "dots", "none"))
    assert full < 0.6 * dots and dots < 0.8 * none, (full, dots, none)


def test_an_unknown_choice_is_refused():
    with pytest.raises(ValueError, match="config.train.remat is True.*'none', 'full', 'dots'"):
        remat_lib.policy(True)


def relative(got, want):
    return np.sqrt(np.mean((got - want) ** 2) / np.mean(np.square(want)))


def test_int8_weights_give_nearly_the_same_logits_and_gradients():
    _, want_gradient, want = gradient("none")
    _, got_gradient, got = gradient("none", "int8")
    error = relative(got, want)
    # Rounding to 256 steps costs under 1% of a layer's output; six layers add up.
    assert 1e-3 < error < 0.03, error
    for a, b in zip(*map(jax.tree.leaves, (got_gradient, want_gradient)), strict=True):
        cosine = np.sum(a * b) / np.sqrt(np.sum(a**2) * np.sum(b**2))
        assert cosine > 0.99 and relative(a, b) < 0.15, (cosine, relative(a, b))


def test_the_forward_pass_leaves_no_floating_point_copy_of_int8_weights():
    kernels = [make_decoder().layers[name][...] for name in decoder_lib.LINEARS]
    a_layer = sum(kernel.nbytes for kernel in kernels) // CONFIG.num_layers
    assert temporary_bytes("none", "int8") - temporary_bytes("none") < a_layer


def test_int8_brings_the_weights_of_7b_from_17_gigabytes_below_11():
    def gigabytes(base_weights):
        model = nnx.eval_shape(
            lambda: VisionLanguageModel(
                presets.CONFIGS["7B"], lora_rank=64, base_weights=base_weights, rngs=nnx.Rngs(0)
            )
        )
        leaves = jax.tree.leaves(nnx.state(model))
        return sum(leaf.size * leaf.dtype.itemsize for leaf in leaves) / 1e9

    assert gigabytes("int8") < 11 < 17 < gigabytes("param_dtype")


def test_an_unknown_kind_of_weights_is_refused():
    with pytest.raises(ValueError, match="config.model.base_weights is 'int4'.*'int8'"):
        make_decoder("int4")


@pytest.mark.parametrize("scan_unroll", [1, CONFIG.num_layers])
def test_adapters_are_cast_once_before_decoding_and_the_numbers_stay(scan_unroll):
    decoder = new_decoder(jnp.bfloat16, scan_unroll=scan_unroll)
    rng = np.random.default_rng(0)
    for variable in nnx.to_flat_state(nnx.state(decoder, nnx.LoRAParam)).leaves:
        variable.set_value(jnp.asarray(rng.normal(0, 0.2, variable.shape), jnp.float32))
    layers, cast = decoder.decode_weights(use_lora=True, merge_lora=False)
    adapters = {name: p[...] for name, p in decoder.lora.items()}
    assert {x.dtype for x in cast.values()} == {jnp.dtype(jnp.bfloat16)}
    assert {x.dtype for x in adapters.values()} == {jnp.dtype(jnp.float32)}
    x_BPD = jnp.asarray(rng.normal(size=(IMAGES, PROMPT, CONFIG.hidden_size)), jnp.bfloat16)
    positions_3BP = jnp.broadcast_to(jnp.arange(PROMPT), (3, IMAGES, PROMPT))
    mask_BP = jnp.arange(PROMPT) >= jnp.array([[0], [4]])

    @functools.partial(jax.jit, compiler_options=QUICK)
    def step(weights):
        _, prefix = decoder.prefill(x_BPD, positions_3BP, mask_BP, use_lora=True)
        suffix = decoder.init_suffix(IMAGES, ANSWERS, LENGTH, jnp.bfloat16)
        tokens_BN = jnp.arange(IMAGES * ANSWERS).reshape(IMAGES, ANSWERS)
        position_BN = jnp.full((IMAGES, ANSWERS), PROMPT)
        return decoder.decode_step(
            tokens_BN, position_BN, jnp.int32(0), prefix, suffix, weights=weights
        )

    (got, _), (want, _) = step((layers, cast)), step((layers, adapters))
    np.testing.assert_array_equal(got.astype(jnp.float32), want.astype(jnp.float32))
    base, _ = step((layers, {}))
    assert np.any(base != want)
